"""Free points: when they are looked at, and that a killed run ends as an undisturbed one."""

from pathlib import Path

import pytest
import torch

from flowprior.prior.flow_prior import FlowPrior
from flowprior.toy import points
from flowprior.toy.points import MovedPoints, look_steps, move_points, weights_digest
from flowprior.toy.target_flow import fit_flow
from flowprior.toy.targets import build_target

from .committed import study

SMOKE = study("preset", "smoke")


def test_looks_are_from_the_start_to_the_end_and_dense_at_the_start() -> None:
    steps = look_steps(1000)
    assert steps[0] == 0
    assert steps[-1] == 1000
    assert steps == sorted(set(steps))
    assert steps[1] == 1
    assert look_steps(1) == [0, 1]


def run(root: Path) -> tuple[FlowPrior, MovedPoints]:
    """Both loops for the mixture, with the objective that has the most state."""
    target = build_target("mixture")
    prior = fit_flow(SMOKE, root, target)
    pull = SMOKE.align.model_copy(update={"objective": "dmd"})
    return prior, move_points(SMOKE, root, target, prior, pull, "study")


def test_a_killed_run_ends_as_one_that_was_not(tmp_path: Path, monkeypatch) -> None:
    """Killed after its only checkpoint, at step 10 of 20."""
    monkeypatch.setenv("FLOWPRIOR_MLFLOW", "off")
    for name in ("DVC_ROOT", "FLOWPRIOR_HOME"):
        monkeypatch.delenv(name, raising=False)
    prior, undisturbed = run(tmp_path / "undisturbed")
    looks = 0

    def dying(*arguments: object) -> torch.Tensor:
        nonlocal looks
        looks += 1
        if looks == len(undisturbed.steps) - 1:
            raise KeyboardInterrupt
        return common_loss(*arguments)

    common_loss = points.common_loss
    monkeypatch.setattr(points, "common_loss", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed")
    (state,) = (tmp_path / "killed/.ckpt/toy_points").glob("*/state.pt")
    assert torch.load(state, weights_only=True)["step"] == 10
    monkeypatch.setattr(points, "common_loss", common_loss)
    other_prior, resumed = run(tmp_path / "killed")
    assert weights_digest(other_prior) == weights_digest(prior)
    assert torch.equal(resumed.history, undisturbed.history)
    assert resumed.curve == undisturbed.curve
    assert resumed.steps == undisturbed.steps
