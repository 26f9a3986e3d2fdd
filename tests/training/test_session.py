"""A session that was interrupted, damaged, or shared ends as one that was not; and what it says on the way."""

import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flowprior.core import rng
from flowprior.core.optim import ema_decay
from flowprior.training import session as session_module
from flowprior.training.checkpoints import FINISHED_KEPT
from flowprior.training.plan import NonFiniteError, Optimizer, Plan
from flowprior.training.session import Session, hold

STEPS = 11
PLAN = Plan(num_steps=STEPS, log_steps=4, checkpoint_steps=3, precision="fp32")
"""Rows end after steps 4, 8 and 11, checkpoints after 3, 6, 9 and 11: a resumed row has parts of two runs."""

OPTIMIZER = Optimizer(
    lr=0.1,
    warmup_steps=3,
    schedule="cosine",
    beta2=0.95,
    weight_decay=0.1,
    max_grad_norm=1.0,
    ema_decay=0.5,
)
CONFIG = {"width": 3}
PLACES = ("before the update", "before the log", "after the log")


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """No tracking, no GPU (on which results are not bit-identical), and accelerate's global state as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWPRIOR_MLFLOW", "off")
        patch.setattr(torch.cuda, "is_available", lambda: False)
        reset()
        yield
    reset()


def reset() -> None:
    """Forget accelerate's state, which else keeps the precision of the first session of a process."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


class Outcome(NamedTuple):
    """What a run leaves."""

    state: dict[str, Any]
    curves: dict[str, list[dict[str, float]]]
    steps: list[int]
    started_at_step: int
    folder: Path


def open_session(root: Path, stage: str = "toy", **changes: Any) -> Session:
    """A session of the tests; `changes` are to its arguments."""
    arguments: dict[str, Any] = {"config": CONFIG, "inputs": {"data": "d"}, "seed": 0, "plan": PLAN}
    return Session(stage, root=root, **arguments | changes)


def train(
    root: Path,
    kill: int | None = None,
    place: str = PLACES[0],
    poison: int | None = None,
    **changes: Any,
) -> Outcome:
    """Fit a line, with a second curve every other step; interrupted or poisoned at a step if asked for."""

    def maybe_kill(step: int, here: str) -> None:
        if step == kill and place == here:
            raise KeyboardInterrupt

    with open_session(root, **changes) as session:
        with rng.scoped(session.seed, "init"):
            module = nn.Linear(3, 1)
        learner = session.learner("line", module, OPTIMIZER)
        steps = []
        for step in session.steps():
            steps.append(step)
            draw = session.generator("step", step)
            x = torch.randn(8, 3, generator=draw)
            loss = (learner.module(session.share(x)) - x.sum(-1, keepdim=True)).square().mean()
            if step == poison:
                loss = loss * torch.nan
            maybe_kill(step, PLACES[0])
            norm = learner.update(loss)
            maybe_kill(step, PLACES[1])
            session.log(step, loss=loss, grad_norm=norm)
            if step % 2:
                session.record("looks", step + 1, {"bias": float(learner.averaged.bias)})
            maybe_kill(step, PLACES[2])
        return Outcome(
            learner.state(), session.curves, steps, session.started_at_step, session.folder
        )


def assert_equal(one: Any, two: Any, where: str = "state") -> None:
    """Nested containers are the same, tensors to the bit."""
    if isinstance(one, Tensor):
        assert isinstance(two, Tensor), where
        assert one.dtype == two.dtype, where
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_equal(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_equal(a, b, f"{where}[{i}]")
    else:
        assert one == two, where


def assert_same(one: Outcome, two: Outcome) -> None:
    """Two runs ended alike: weights, averages, optimiser, schedule and curves."""
    assert_equal(one.state, two.state)
    assert one.curves == two.curves


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What a run ends with that nobody disturbs."""
    return train(tmp_path_factory.mktemp("undisturbed"))


# --- a run by itself --------------------------------------------------------------------------------


def test_a_run_takes_every_step_once_and_learns(undisturbed: Outcome) -> None:
    """From 0 to the end, and the loss falls."""
    assert undisturbed.steps == list(range(STEPS))
    assert undisturbed.started_at_step == 0
    losses = [row["loss"] for row in undisturbed.curves["train"]]
    assert losses[-1] < losses[0]


def test_a_row_of_the_curve_is_the_mean_of_its_steps(tmp_path: Path) -> None:
    """Of four, four, and the three that are left; a step is named by the updates that are done."""
    with open_session(tmp_path) as session:
        for step in session.steps():
            session.log(step, number=float(step), tensor=torch.tensor(2.0 * step))
    assert session.curves["train"] == [
        {"step": 4, "number": 1.5, "tensor": 3.0},
        {"step": 8, "number": 5.5, "tensor": 11.0},
        {"step": 11, "number": 9.0, "tensor": 18.0},
    ]


def test_other_tables_keep_their_own_cadence(undisturbed: Outcome) -> None:
    """Every other step here."""
    assert [row["step"] for row in undisturbed.curves["looks"]] == [2, 4, 6, 8, 10]
    assert all(type(row["step"]) is int for row in undisturbed.curves["looks"])


def test_equal_seeds_give_equal_runs(tmp_path: Path, undisturbed: Outcome) -> None:
    """To the bit, in another folder; another seed does not."""
    assert_same(train(tmp_path / "same"), undisturbed)
    other = train(tmp_path / "other", seed=1)
    assert not torch.equal(other.state["module"]["weight"], undisturbed.state["module"]["weight"])


def test_generators_differ_by_stage_seed_and_tag(tmp_path: Path) -> None:
    """And are the same for the same three."""
    one, again = (open_session(tmp_path).generator("a", 1) for _ in range(2))
    others = [
        open_session(tmp_path, stage="other").generator("a", 1),
        open_session(tmp_path, seed=1).generator("a", 1),
        open_session(tmp_path).generator("a", 2),
    ]
    draw = torch.rand(4, generator=one)
    assert torch.equal(torch.rand(4, generator=again), draw)
    assert not any(torch.equal(torch.rand(4, generator=other), draw) for other in others)


def test_the_average_follows_the_weights_by_the_ramped_decay(tmp_path: Path) -> None:
    """Replayed by hand: the first update copies, the others keep the share `ema_decay` of what was."""
    with open_session(tmp_path) as session:
        learner = session.learner("line", nn.Linear(3, 1), OPTIMIZER)
        average = None
        for step in session.steps():
            x = torch.randn(8, 3, generator=session.generator(step))
            learner.update(learner.module(x).square().mean())
            weight = learner.module.weight.detach()
            if average is None:
                average = weight.clone()
            else:
                average += (1 - ema_decay(step, OPTIMIZER.ema_decay)) * (weight - average)
    assert not any(p.requires_grad for p in learner.averaged.parameters())
    torch.testing.assert_close(learner.averaged.weight, average, rtol=1e-5, atol=1e-7)


def test_the_rate_warms_up_and_comes_down(tmp_path: Path) -> None:
    """To its peak after the warm-up and to a tenth of it at the end."""
    with open_session(tmp_path) as session:
        learner = session.learner("line", nn.Linear(3, 1), OPTIMIZER)
        rates = []
        for _ in session.steps():
            rates.append(learner.learning_rate)
            learner.update(learner.module(torch.ones(1, 3)).square().mean())
    assert rates[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert learner.learning_rate == pytest.approx(0.01)


def test_gradients_are_clipped_and_the_norm_before_is_returned(tmp_path: Path) -> None:
    """A loss a thousand times as large has a norm a thousand times as large and moves the weights alike."""
    moved, norms = [], []
    for factor in (1e3, 1e6):
        with open_session(tmp_path / str(factor)) as session:
            module = nn.Linear(3, 1)
            nn.init.ones_(module.weight)
            learner = session.learner("line", module, OPTIMIZER)
            norms.append(learner.update(factor * learner.module(torch.ones(1, 3)).sum()))
            moved.append(learner.module.weight.detach().clone())
    assert norms[1].item() == pytest.approx(1e3 * norms[0].item())
    assert norms[0].item() == pytest.approx(1e3 * 2)
    torch.testing.assert_close(moved[0], moved[1])


def test_bf16_autocasts_the_module_and_keeps_float32_weights(tmp_path: Path) -> None:
    """By the plan alone; losses of the outputs are float32 again."""
    reset()
    try:
        with open_session(tmp_path, plan=PLAN._replace(precision="bf16")) as session:
            learner = session.learner("line", nn.Linear(3, 1), OPTIMIZER)
            seen = []
            hook: Any = lambda module, inputs, output: seen.append(output.dtype)  # noqa: E731
            learner.module.register_forward_hook(hook)
            output = learner.module(torch.ones(1, 3))
            with session.autocast():
                inside = torch.ones(2, 2) @ torch.ones(2, 2)
            learner.update(output.square().mean())
            assert inside.dtype == torch.bfloat16
            assert output.dtype == torch.float32
            assert learner.module.weight.dtype == torch.float32
    finally:
        reset()


# --- in parts ---------------------------------------------------------------------------------------


def train_in_parts(root: Path, accumulate: int, kill: int | None = None) -> Outcome:
    """A line on batches of 8 rows, of which each part takes its share; interrupted after a step if asked for."""
    with open_session(root, plan=PLAN._replace(accumulate=accumulate)) as session:
        with rng.scoped(session.seed, "init"):
            module = nn.Linear(3, 1)
        learner = session.learner("line", module, OPTIMIZER)
        steps = []
        for step in session.steps():
            x = torch.randn(8, 3, generator=rng.generator(0, step)).chunk(accumulate)
            for part in session.parts():
                loss = (learner.module(x[part]) - x[part].sum(-1, keepdim=True)).square().mean()
                norm = learner.update(loss)
                assert (norm is None) == (part < accumulate - 1)
                assert session.ends_step == (part == accumulate - 1)
                session.log(step, loss=loss, grad_norm=norm)
            steps.append(step)
            if step == kill:
                raise KeyboardInterrupt
        return Outcome(
            learner.state(), session.curves, steps, session.started_at_step, session.folder
        )


def test_parts_add_up_to_the_whole_batch(tmp_path: Path) -> None:
    """Weights and curves as of one part, up to the order of sums."""
    whole, parts = (train_in_parts(tmp_path / str(n), n) for n in (1, 4))
    torch.testing.assert_close(parts.state["module"], whole.state["module"])
    for one, other in zip(whole.curves["train"], parts.curves["train"], strict=True):
        assert other == pytest.approx(one, rel=1e-4)


def test_a_run_in_parts_goes_on_as_one_that_was_not_interrupted(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_in_parts(tmp_path / "killed", 2, kill=7)
    assert_same(train_in_parts(tmp_path / "killed", 2), train_in_parts(tmp_path / "whole", 2))


def test_each_part_has_draws_of_its_own(tmp_path: Path) -> None:
    """From the generator and from torch's global stream; the first part's are those of a run in one part."""
    with open_session(tmp_path, plan=PLAN._replace(accumulate=3)) as session:
        drawn = []
        for _ in session.parts():
            with session.dropout(0):
                drawn += [torch.rand(1, generator=session.generator("step", 0)), torch.rand(1)]
        assert torch.equal(torch.rand(1, generator=session.generator("step", 0)), drawn[0])
    assert len({float(x) for x in drawn}) == 6


def test_a_value_that_begins_later_is_a_mean_of_what_there_is(tmp_path: Path) -> None:
    with open_session(tmp_path) as session:
        for step in session.steps():
            session.log(step, late=float(step) if step >= 2 else None, always=1.0)
    assert session.curves["train"][0] == {"step": 4, "late": 2.5, "always": 1.0}


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_module_trains_and_keeps_its_names(tmp_path: Path, undisturbed: Outcome) -> None:
    """Parameters are called what they are called; the run ends near one that is not compiled."""
    found = train(tmp_path, plan=PLAN._replace(compile=True))
    assert found.state["module"].keys() == undisturbed.state["module"].keys()
    torch.testing.assert_close(found.state["module"], undisturbed.state["module"])


# --- interrupted ------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    kills=st.lists(
        st.tuples(st.integers(0, STEPS - 1), st.sampled_from(PLACES)), min_size=1, max_size=3
    )
)
def test_a_run_interrupted_anywhere_and_started_again_ends_as_one_that_was_not(
    undisturbed: Outcome, kills: list[tuple[int, str]]
) -> None:
    """Weights, averages, optimiser and curves to the bit, however often it was interrupted, and wherever."""
    with TemporaryDirectory() as folder:
        last = 0
        for step, place in kills:
            if step < last:
                continue  # a run that goes on beyond this step is not killed there any more
            with pytest.raises(KeyboardInterrupt):
                train(Path(folder), kill=step, place=place)
            last = step - step % PLAN.checkpoint_steps
        outcome = train(Path(folder))
        assert outcome.started_at_step == last
        assert outcome.steps == list(range(last, STEPS))
        assert_same(outcome, undisturbed)


@pytest.mark.parametrize("save", [1, 2, 4])
def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Outcome, save: int
) -> None:
    """Half a checkpoint is never read: it takes its name only when it is whole."""
    calls = []
    honest = torch.save

    def interrupted(state: Any, path: Path) -> None:
        calls.append(path)
        honest(state, path)
        if len(calls) == save:
            os.truncate(path, path.stat().st_size // 2)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    outcome = train(tmp_path)
    assert outcome.started_at_step == PLAN.checkpoint_steps * (save - 1)
    assert_same(outcome, undisturbed)


def test_a_resumed_run_says_where_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, to the error stream."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, kill=7)
    capsys.readouterr()
    train(tmp_path)
    assert "toy: goes on at step 6 of 11\n" in capsys.readouterr().err


def test_a_finished_run_trains_zero_steps_and_gives_the_same(
    tmp_path: Path, undisturbed: Outcome
) -> None:
    """As often as it is asked: a stage may be killed between its training and its outputs."""
    train(tmp_path)
    for _ in range(2):
        outcome = train(tmp_path)
        assert outcome.steps == []
        assert outcome.started_at_step == STEPS
        assert_same(outcome, undisturbed)


def test_the_seconds_of_all_parts_of_a_run_add_up(tmp_path: Path) -> None:
    """Those up to the checkpoint count; those that were lost do not; a finished run adds next to nothing."""

    def run(kill: int | None) -> Session:
        with open_session(tmp_path) as session:
            for step in session.steps():
                if step == kill:
                    raise KeyboardInterrupt
                time.sleep(0.01)
        return session

    with pytest.raises(KeyboardInterrupt):
        run(kill=7)
    whole = run(kill=None).seconds
    assert whole >= 0.01 * STEPS
    assert run(kill=None).seconds == pytest.approx(whole, abs=0.05)


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"width": 4}},
        {"inputs": {"data": "other"}},
        {"inputs": {}},
        {"stage": "other"},
        {"config": {}},
    ],
    ids=["config", "input", "no input", "stage", "no config"],
)
def test_another_key_never_sees_the_checkpoint(
    tmp_path: Path, undisturbed: Outcome, change: dict[str, Any]
) -> None:
    """It starts at 0, and the first goes on as if nothing had been."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, kill=7)
    other = train(tmp_path, **change)
    assert other.started_at_step == 0
    assert other.steps == list(range(STEPS))
    outcome = train(tmp_path)
    assert outcome.started_at_step == 6
    assert other.folder != outcome.folder
    assert_same(outcome, undisturbed)


def test_other_code_never_sees_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hash of what is loaded of flowprior, and of the script, is part of the key."""
    first = open_session(tmp_path).folder
    assert open_session(tmp_path).folder == first
    changed = tmp_path / "losses.py"
    changed.write_text("# another version\n")
    module = sys.modules["flowprior.core.optim"]
    monkeypatch.setattr(module, "__file__", str(changed))
    assert open_session(tmp_path).folder != first


# --- damaged checkpoints ----------------------------------------------------------------------------


class Bomb:
    """Executes a command where it is unpickled: it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def damage(state: Path, kind: str, marker: Path) -> None:
    """Spoil a checkpoint."""
    content = state.read_bytes()
    if kind == "empty":
        state.write_bytes(b"")
    elif kind == "truncated":
        state.write_bytes(content[: len(content) // 2])
    elif kind == "one byte short":
        state.write_bytes(content[:-1])
    elif kind == "noise":
        state.write_bytes(bytes(range(256)) * 8)
    elif kind == "pickle":
        state.write_bytes(pickle.dumps({"step": 3, "learners": Bomb(marker)}))
    elif kind == "torch pickle":
        torch.save(torch.load(state, weights_only=True) | {"curves": Bomb(marker)}, state)
    else:
        found = torch.load(state, weights_only=True)
        if kind == "another model":
            found["learners"]["line"]["module"] = nn.Linear(4, 1).state_dict()
        elif kind == "another optimiser":
            found["learners"]["line"]["optimizer"]["param_groups"] = []
        elif kind == "no step":
            del found["step"]
        elif kind == "no curves":
            found["curves"] = "{"
        torch.save(found, state)


@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "truncated",
        "one byte short",
        "noise",
        "pickle",
        "torch pickle",
        "another model",
        "another optimiser",
        "no step",
        "no curves",
    ],
)
@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_checkpoint_is_set_aside_and_the_stage_starts_over(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    undisturbed: Outcome,
    kind: str,
    finished: bool,
) -> None:
    """With a warning, without executing anything in it, and with nothing of it left in the result."""
    if finished:
        train(tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, kill=7)
    (state,) = tmp_path.rglob("state.pt")
    marker = tmp_path / "executed"
    damage(state, kind, marker)
    spoiled = state.read_bytes()
    capsys.readouterr()
    outcome = train(tmp_path)
    assert not marker.exists()
    said = capsys.readouterr().err
    assert "toy: WARNING the checkpoint" in said
    assert str(state) in said
    assert "set aside as state.damaged and the stage starts over" in said
    assert state.with_suffix(".damaged").read_bytes() == spoiled
    assert outcome.steps == list(range(STEPS))
    assert_same(outcome, undisturbed)
    assert train(tmp_path).steps == []


def test_a_finished_checkpoint_that_was_damaged_is_not_finished_any_more(tmp_path: Path) -> None:
    """Neither while the stage runs again nor when that run is killed; what is kept is the new one's."""
    state = train(tmp_path).folder / "state.pt"
    state.write_bytes(b"")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, kill=7)
    assert not state.with_name("finished").exists()
    assert train(tmp_path).started_at_step == 6


def test_flipped_bits_in_the_weights_of_a_checkpoint_are_noticed(
    tmp_path: Path, undisturbed: Outcome
) -> None:
    """Whatever bit of the file it is: the result is that of an undisturbed run, resumed or started over."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, kill=7)
    (state,) = tmp_path.rglob("state.pt")
    content = state.read_bytes()
    weight = torch.load(state, weights_only=True)["learners"]["line"]["module"]["weight"]
    place = content.index(weight.numpy().tobytes())
    spoiled = bytearray(content)
    spoiled[place + 2] ^= 64
    state.write_bytes(bytes(spoiled))
    assert_same(train(tmp_path), undisturbed)


# --- numbers that are not finite --------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_checkpoint(
    tmp_path: Path, undisturbed: Outcome
) -> None:
    """The error names stage, learner, step and checkpoint; without the poison the run goes on from there."""
    with pytest.raises(NonFiniteError) as caught:
        train(tmp_path, poison=7)
    (state,) = tmp_path.rglob("state.pt")
    said = str(caught.value)
    assert said.startswith("toy: the loss of the line is nan at step 7;")
    assert f"the last good checkpoint is {state}." in said
    assert torch.load(state, weights_only=True)["step"] == 6
    outcome = train(tmp_path)
    assert outcome.started_at_step == 6
    assert_same(outcome, undisturbed)


def test_a_loss_that_is_not_finite_after_a_resumption_names_the_right_step(tmp_path: Path) -> None:
    """Right at the first step of the second process as well."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, kill=7)
    with pytest.raises(NonFiniteError, match="is nan at step 6;"):
        train(tmp_path, poison=6)


def test_before_the_first_checkpoint_there_is_none_to_name(tmp_path: Path) -> None:
    """And the message says so."""
    with pytest.raises(NonFiniteError, match="at step 1; no checkpoint yet"):
        train(tmp_path, poison=1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_is_changed_by_a_loss_that_is_not_finite(tmp_path: Path, value: float) -> None:
    """Neither weights nor averages nor the schedule."""
    with open_session(tmp_path) as session:
        learner = session.learner("line", nn.Linear(3, 1), OPTIMIZER)
        learner.update(learner.module(torch.ones(1, 3)).square().mean())
        before = pickle.loads(pickle.dumps(learner.state()))
        loss = learner.module(torch.ones(1, 3)).sum() * value
        with pytest.raises(NonFiniteError, match="the loss of the line is"):
            learner.update(loss)
        assert_equal(learner.state(), before)


def test_nothing_is_changed_by_a_gradient_that_is_not_finite(tmp_path: Path) -> None:
    """The loss itself may be a number: the root of zero has one, and no derivative."""
    with open_session(tmp_path) as session:
        learner = session.learner("line", nn.Linear(3, 1), OPTIMIZER)
        before = pickle.loads(pickle.dumps(learner.state()))
        loss = (0 * learner.module(torch.ones(1, 3))).abs().sqrt().sum()
        assert loss == 0
        with pytest.raises(NonFiniteError, match="the gradient norm of the line is nan at step 0"):
            learner.update(loss)
        assert_equal(learner.state(), before)


# --- two processes ----------------------------------------------------------------------------------

HOLDER = """
import fcntl, pathlib, sys
lock = pathlib.Path(sys.argv[1])
lock.parent.mkdir(parents=True, exist_ok=True)
file = lock.open("a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.truncate(0)
file.write("process 123 on elsewhere")
file.flush()
print("held", flush=True)
sys.stdin.readline()
lock.with_name("released").touch()
"""


@pytest.fixture
def holder() -> Iterator[Any]:
    """Starts another process that holds a lock until it is sent a line."""
    started = []

    def start(lock: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(lock)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def release_later(process: subprocess.Popen[str], seconds: float = 0.3) -> threading.Thread:
    """Let the other process go, a little later."""

    def release() -> None:
        time.sleep(seconds)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()

    thread = threading.Thread(target=release)
    thread.start()
    return thread


def test_a_second_process_with_the_same_key_waits_and_then_has_nothing_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], holder: Any, undisturbed: Outcome
) -> None:
    """It says for whom it waits, goes on when the other is done, and takes the other's result."""
    folder = train(tmp_path).folder
    thread = release_later(holder(folder / "lock"))
    capsys.readouterr()
    outcome = train(tmp_path)
    thread.join()
    assert (folder / "released").exists()
    said = capsys.readouterr().err
    assert "toy: waiting for process 123 on elsewhere, which does the same work" in said
    assert outcome.steps == []
    assert_same(outcome, undisturbed)


def test_a_process_with_another_key_does_not_wait(tmp_path: Path, holder: Any) -> None:
    """Two experiments of one stage train side by side."""
    folder = open_session(tmp_path).folder
    holder(folder / "lock")
    outcome = train(tmp_path, config={"width": 4})
    assert outcome.steps == list(range(STEPS))
    assert not (folder / "released").exists()


def test_a_lock_is_let_go_by_a_process_that_dies(tmp_path: Path, holder: Any) -> None:
    """Killed without a chance to clean up: the next one waits for nobody."""
    process = holder(tmp_path / "lock")
    process.kill()
    process.wait()
    file = hold(tmp_path / "lock", "toy")
    assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")
    file.close()


def test_a_lock_is_let_go_at_the_end_and_on_an_error(tmp_path: Path) -> None:
    """Else the same process could not open the stage again."""
    with open_session(tmp_path):
        pass
    with pytest.raises(ZeroDivisionError), open_session(tmp_path):
        raise ZeroDivisionError
    with open_session(tmp_path) as session:
        assert (session.folder / "lock").read_text().startswith(f"process {os.getpid()} on ")


# --- what is kept -----------------------------------------------------------------------------------


def test_only_the_newest_finished_checkpoints_of_other_keys_survive(tmp_path: Path) -> None:
    """Four of them; what is unfinished, and other stages, are left alone."""
    assert FINISHED_KEPT == 4
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, kill=7, config={"width": -1})
    unfinished = open_session(tmp_path, config={"width": -1}).folder
    elsewhere = train(tmp_path, stage="other").folder
    short = PLAN._replace(num_steps=1)
    folders = []
    for width in range(7):
        folders.append(train(tmp_path, plan=short, config={"width": width}).folder)
        os.utime(folders[-1] / "finished", (1000 + width, 1000 + width))
    # The last one started with six others of its stage that were finished.
    assert [folder.exists() for folder in folders] == [False, False, *[True] * 5]
    assert (unfinished / "state.pt").exists()
    assert (elsewhere / "finished").exists()


@pytest.mark.parametrize("checkpoint_steps", [1, 100])
def test_a_run_is_finished_when_its_last_checkpoint_is_saved(
    tmp_path: Path, checkpoint_steps: int
) -> None:
    """Neither earlier nor without one, whatever the cadence."""
    plan = PLAN._replace(checkpoint_steps=checkpoint_steps)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, plan=plan, kill=STEPS - 1)
    folder = open_session(tmp_path).folder
    assert not (folder / "finished").exists()
    train(tmp_path, plan=plan)
    assert (folder / "finished").exists()
    assert torch.load(folder / "state.pt", weights_only=True)["step"] == STEPS


def test_a_run_killed_before_it_was_marked_as_finished_is_marked_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its checkpoint is never forgotten."""

    def interrupted(path: Path, content: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session_module, "write_atomic", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    outcome = train(tmp_path)
    assert outcome.steps == []
    assert (outcome.folder / "finished").exists()


# --- ranks ------------------------------------------------------------------------------------------


def ranks(patch: pytest.MonkeyPatch, count: int, index: int = 0) -> None:
    """Let accelerate say that there are so many ranks and that this is one of them."""
    patch.setattr(Accelerator, "num_processes", property(lambda self: count))
    patch.setattr(Accelerator, "process_index", property(lambda self: index))


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_shares_of_all_ranks_are_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, dim: int
) -> None:
    """In their order, without overlap, along any dim."""
    session = open_session(tmp_path)
    batch = torch.arange(6 * 12).view(6, 12)
    shares = []
    for index in range(count):
        ranks(monkeypatch, count, index)
        shares.append(session.share(batch, dim))
    assert len({share.shape for share in shares}) == 1
    assert torch.equal(torch.cat(shares, dim), batch)


@pytest.mark.parametrize(("size", "count"), [(8, 3), (1, 2), (7, 8)])
def test_a_batch_that_the_ranks_do_not_divide_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, count: int
) -> None:
    """It says how large, how many, and what to change."""
    session = open_session(tmp_path)
    ranks(monkeypatch, count)
    said = f"a batch of {size} cannot be split over {count} ranks; change the batch or the launch"
    with pytest.raises(ValueError, match=said):
        session.share(torch.zeros(size, 2))
