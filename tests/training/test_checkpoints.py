"""A checkpoint is whole, or set aside; those that finished are forgotten in time."""

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flowprior.training import session as session_module
from flowprior.training.checkpoints import FINISHED_KEPT, code_digest

from .runs import (
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


def test_the_digest_of_the_code_is_of_what_is_loaded_of_the_package_and_of_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So an edited message is other code, and a module that is not loaded is not."""
    first = code_digest()
    assert code_digest() == first
    changed = tmp_path / "losses.py"
    changed.write_text("# another version\n")
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["flowprior.core.optim"], "__file__", str(changed))
        assert code_digest() != first
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(changed), raising=False)
    script = code_digest()
    assert script != first
    changed.write_text("# a third version\n")
    assert code_digest() not in (first, script)
