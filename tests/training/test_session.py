"""A session that was interrupted or shared ends as one that was not; and what it says on the way."""

import os
import subprocess
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flowprior.core import rng
from flowprior.core.io import read_json
from flowprior.training import session as session_module
from flowprior.training.plan import NonFiniteError, OtherCodeError
from flowprior.training.session import Session

from .runs import (
    OPTIMIZER,
    PLACES,
    PLAN,
    STEPS,
    Outcome,
    assert_same,
    open_session,
    quiet,  # noqa: F401
    train,
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What a run ends with that nobody disturbs."""
    return train(tmp_path_factory.mktemp("undisturbed"))


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


# --- other code and another behaviour -----------------------------------------------------------------


def code(patch: pytest.MonkeyPatch, name: str) -> None:
    """Let this code be another, of another commit."""
    patch.setattr(session_module, "code_digest", lambda: f"digest of {name}")
    patch.setattr(session_module, "commit", lambda: name)


def test_a_checkpoint_of_other_code_of_the_same_behaviour_is_resumed_and_that_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    undisturbed: Outcome,
) -> None:
    """An edited message costs no training."""
    code(monkeypatch, "one")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, kill=7)
    code(monkeypatch, "two")
    capsys.readouterr()
    outcome = train(tmp_path)
    said = capsys.readouterr().err
    assert "toy: other code of the same version began this run (commit one, now two)\n" in said
    assert "toy: goes on at step 6 of 11\n" in said
    assert outcome.began_at == "one"
    assert outcome.steps == list(range(6, STEPS))
    assert_same(outcome, undisturbed)


def test_the_same_code_says_nothing_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it was committed in between."""
    code(monkeypatch, "one")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, kill=7)
    monkeypatch.setattr(session_module, "commit", lambda: "later")
    assert train(tmp_path).began_at is None
    assert "other code" not in capsys.readouterr().err


def test_whoever_goes_on_knows_the_code_that_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first of all, through a third code and through a resumption by the same."""
    for name, kill in (("one", 4), ("two", 7), ("three", 10)):
        code(monkeypatch, name)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, kill=kill)
    assert "began this run (commit one, now three)" in capsys.readouterr().err
    assert train(tmp_path).began_at == "one"
    assert "other code" not in capsys.readouterr().err


def test_strictly_a_checkpoint_of_other_code_is_refused_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Outcome
) -> None:
    code(monkeypatch, "one")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, kill=7)
    (state,) = tmp_path.rglob("state.pt")
    content = state.read_bytes()
    monkeypatch.setenv("FLOWPRIOR_RESUME", "strict")
    code(monkeypatch, "two")
    with pytest.raises(OtherCodeError) as error:
        train(tmp_path)
    for part in ("toy: the checkpoint", str(state), "commit one, now two", "FLOWPRIOR_RESUME"):
        assert part in str(error.value)
    assert state.read_bytes() == content
    code(monkeypatch, "one")
    outcome = train(tmp_path)
    assert outcome.started_at_step == 6
    assert outcome.began_at is None
    assert_same(outcome, undisturbed)


def test_another_behaviour_never_sees_the_checkpoint(tmp_path: Path) -> None:
    """Whatever its parameters are called; the same behaviour does, whatever is tracked of it."""
    behaviour = {"version": 1, "config": {"width": 3}, "plugins": {}}
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, kill=7, behaviour=behaviour)
    for other in (
        behaviour | {"version": 2},
        behaviour | {"config": {"width": 4}},
        behaviour | {"plugins": {"plugins.alignment.own:Own": "sha256"}},
    ):
        assert train(tmp_path, behaviour=other).started_at_step == 0
    outcome = train(tmp_path, behaviour=behaviour, config={"width": 3, "options": {}})
    assert outcome.started_at_step == 6


def test_the_report_says_which_code_began_the_run_beside_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not among the facts, which are a function of inputs and parameters."""
    code(monkeypatch, "one")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, kill=7)
    code(monkeypatch, "two")
    with open_session(tmp_path) as session:
        learner = session.learner("line", nn.Linear(3, 1), OPTIMIZER)
        for _ in session.steps():
            learner.update(learner.module(torch.ones(1, 3)).square().mean())
        session.report(tmp_path, {"loss": 0.5, "seed": 0}, images_per_second=3.0)
    assert read_json(tmp_path / "metrics/toy.json") == {"loss": 0.5, "seed": 0}
    costs = read_json(tmp_path / "metrics/costs/toy.json")
    assert costs["began_at"] == "one"
    assert costs["images_per_second"] == 3.0
    assert costs["seconds"] == session.seconds


# --- two processes ------------------------------------------------------------------------------------


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


def test_a_lock_is_let_go_at_the_end_and_on_an_error(tmp_path: Path) -> None:
    """Else the same process could not open the stage again."""
    with open_session(tmp_path):
        pass
    with pytest.raises(ZeroDivisionError), open_session(tmp_path):
        raise ZeroDivisionError
    with open_session(tmp_path) as session:
        assert (session.folder / "lock").read_text().startswith(f"process {os.getpid()} on ")


def ranks(patch: pytest.MonkeyPatch, count: int, index: int = 0) -> None:
    """Let torch say that there are so many ranks and that this is one of them."""
    patch.setattr("torch.distributed.is_initialized", lambda: True)
    patch.setattr("torch.distributed.get_world_size", lambda: count)
    patch.setattr("torch.distributed.get_rank", lambda: index)


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


@pytest.mark.parametrize("index", [0, 1, 2])
def test_gathered_rows_are_all_ranks_in_order_with_a_gradient_to_the_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: int
) -> None:
    """Multiplied by the number of ranks, over which data parallelism takes the mean; the others' are constants."""
    session = open_session(tmp_path)
    everyone = torch.arange(12.0).view(6, 2)
    ranks(monkeypatch, 3, index)

    def all_gather(found: list[torch.Tensor], mine: torch.Tensor) -> None:
        for into, rows in zip(found, everyone.chunk(3), strict=True):
            into.copy_(rows)

    monkeypatch.setattr("torch.distributed.all_gather", all_gather)
    own = everyone.chunk(3)[index].clone().requires_grad_()
    found = session.gather(own)
    assert torch.equal(found, everyone)
    found.square().sum().backward()
    assert torch.equal(own.grad, 3 * 2 * own.detach())
