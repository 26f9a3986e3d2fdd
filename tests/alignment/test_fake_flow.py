"""The fake flow beside the latents it models: it learns, it resumes, it leaves the latents alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flowprior.alignment.fake_flow import FakeFlow
from flowprior.alignment.flows import DistributionMatching
from flowprior.alignment.objective import Objective, Unaligned
from flowprior.core import rng
from flowprior.core.codes import Codes
from flowprior.core.rng import Draw
from flowprior.flow.velocity import VelocityMLP
from flowprior.training.plan import Plan
from flowprior.training.session import Session
from tests.training.runs import OPTIMIZER, assert_equal, quiet, reset  # noqa: F401

PLAN = Plan(num_steps=9, log_steps=3, checkpoint_steps=2, precision="fp32")
ROWS, TOKENS, DIM = 8, 3, 2


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Accelerate's state of other tests."""
    reset()
    yield
    reset()


def objective() -> DistributionMatching:
    """`dmd` on a network that answers something."""
    with rng.scoped(0, "real"):
        velocity = VelocityMLP(DIM, 8, 1)
        for parameter in velocity.parameters():
            nn.init.normal_(parameter, std=0.3)
    return DistributionMatching(velocity.requires_grad_(False), DIM, 2, 0.9)


def train(
    root: Path, kill: int | None = None, num_updates: int = 2, chosen: Objective | None = None
) -> dict[str, Any]:
    """Free latents pulled by `dmd`, its fake flow behind them; killed after the updates of a step if asked for."""
    pull = chosen or objective()
    config = {"updates": num_updates, "objective": type(pull).__name__}
    with Session("fake", config=config, inputs={}, seed=0, plan=PLAN, root=root) as session:
        with rng.scoped(0, "latents"):
            points = nn.Linear(1, ROWS * TOKENS * DIM, bias=False)
        learner = session.learner("points", points, OPTIMIZER)
        fake = FakeFlow(session, pull, num_updates=num_updates, lr=0.01)
        rows = []
        for step in session.steps():
            latents = learner.module(torch.ones(1)).view(ROWS, TOKENS, DIM)
            codes = Codes(latents, latents, None)
            draw = Draw(session.generator("step", step), ROWS, session.share, session.gather)
            learner.update(pull(codes, draw) + 0 * latents.sum())
            rows.append(fake.follow(codes, step, draw))
            if step == kill:
                raise KeyboardInterrupt
            session.log(step, **rows[-1])
        state = pull.fake.state_dict() if isinstance(pull, DistributionMatching) else {}
        return {
            "points": learner.state(),
            "fake": state,
            "curves": session.curves,
            "logged": [sorted(row) for row in rows],
        }


@pytest.mark.parametrize("kill", [0, 1, 4, 8])
def test_a_killed_run_goes_on_with_both_to_the_same_bytes(tmp_path: Path, kill: int) -> None:
    """Wherever it is killed: between checkpoints, right after one, at the last step."""
    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", kill=kill)
    resumed = train(tmp_path / "killed")
    assert len(resumed["logged"]) == PLAN.num_steps - kill // 2 * 2
    assert_equal(resumed["fake"], whole["fake"])
    assert_equal(resumed["points"], whole["points"])
    assert resumed["curves"] == whole["curves"]


def test_it_learns_the_latents_as_they_are(tmp_path: Path) -> None:
    """Which it did not know: its loss falls, and more updates a step make it fall further."""
    losses = {
        updates: [
            row["fake_loss"]
            for row in train(tmp_path / str(updates), num_updates=updates)["curves"]["train"]
        ]
        for updates in (1, 8)
    }
    assert losses[8][-1] < losses[8][0]
    assert losses[8][-1] < losses[1][-1]


def test_it_starts_as_the_real_flow_and_leaves_that_alone(tmp_path: Path) -> None:
    pull = objective()
    before = {name: value.clone() for name, value in pull.velocity.state_dict().items()}  # type: ignore[attr-defined]
    assert_equal(dict(pull.fake.state_dict()), before)
    found = train(tmp_path, chosen=pull)
    assert_equal(dict(pull.velocity.state_dict()), before)  # type: ignore[attr-defined]
    assert not torch.equal(
        torch.cat([p.flatten() for p in found["fake"].values()]),
        torch.cat([p.flatten() for p in before.values()]),
    )


def test_no_gradient_reaches_the_latents(tmp_path: Path) -> None:
    with Session("fake", config={}, inputs={}, seed=0, plan=PLAN, root=tmp_path) as session:
        fake = FakeFlow(session, objective(), num_updates=1, lr=0.01)
        latents = torch.zeros(ROWS, TOKENS, DIM, requires_grad=True)
        for step in session.steps():
            fake.follow(Codes(latents, latents, None), step, Draw(rng.generator(step), ROWS))
    assert latents.grad is None


def test_an_objective_without_a_fake_flow_has_nothing_to_train(tmp_path: Path) -> None:
    found = train(tmp_path, chosen=Unaligned())
    assert found["logged"] == [[]] * PLAN.num_steps
