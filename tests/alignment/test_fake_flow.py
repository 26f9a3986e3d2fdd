"""The fake flow beside the latents it models: it learns, it resumes, it leaves the latents alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flowprior import FlowPrior
from flowprior.alignment.config import Pull
from flowprior.alignment.in_training import fresh_draws, open_term
from flowprior.core import rng
from flowprior.core.codes import Codes
from flowprior.core.rng import Draw
from flowprior.flow.velocity import VelocityMLP
from flowprior.prior.projection import Projection
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


def real() -> FlowPrior:
    """A prior whose network answers something."""
    with rng.scoped(0, "real"):
        velocity = VelocityMLP(DIM, 8, 1)
        for parameter in velocity.parameters():
            nn.init.normal_(parameter, std=0.3)
    return FlowPrior(velocity, Projection(torch.eye(DIM), 1.0, "identity", 0))


def pull_by(name: str, num_updates: int) -> Pull:
    """Parameters of an objective."""
    return Pull(
        objective=name, num_draws=2, t_max=0.9, fake_updates=num_updates, fake_lr=0.01, options={}
    )


def no_targets(n: int, generator: torch.Generator) -> torch.Tensor:
    """What these objectives do not ask."""
    raise NotImplementedError


def train(
    root: Path,
    kill: int | None = None,
    num_updates: int = 2,
    name: str = "dmd",
    prior: FlowPrior | None = None,
) -> dict[str, Any]:
    """Free latents pulled by `dmd`, its fake flow behind them; killed after the updates of a step if asked for."""
    config = {"updates": num_updates, "objective": name}
    with Session("fake", config=config, inputs={}, seed=0, plan=PLAN, root=root) as session:
        with rng.scoped(0, "latents"):
            points = nn.Linear(1, ROWS * TOKENS * DIM, bias=False)
        learner = session.learner("points", points, OPTIMIZER)
        pull = open_term(session, prior or real(), pull_by(name, num_updates), no_targets)
        rows = []
        for step in session.steps():
            latents = learner.module(torch.ones(1)).view(ROWS, TOKENS, DIM)
            codes = Codes(latents, latents, None)
            draw = Draw(session.generator("step", step), ROWS, session.share, session.gather)
            learner.update(pull(codes, draw=draw) + 0 * latents.sum())
            rows.append(pull.follow(codes, fresh_draws(session, step, draw)))
            if step == kill:
                raise KeyboardInterrupt
            session.log(step, **rows[-1])
        state = pull.objective.fake.state_dict() if name == "dmd" else {}
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
    prior = real()
    before = {name: value.clone() for name, value in prior.velocity.state_dict().items()}
    assert_equal(dict(prior.objective("dmd").objective.fake.state_dict()), before)
    found = train(tmp_path, prior=prior)
    assert_equal(dict(prior.velocity.state_dict()), before)
    assert not torch.equal(
        torch.cat([p.flatten() for p in found["fake"].values()]),
        torch.cat([p.flatten() for p in before.values()]),
    )


def test_no_gradient_reaches_the_latents(tmp_path: Path) -> None:
    with Session("fake", config={}, inputs={}, seed=0, plan=PLAN, root=tmp_path) as session:
        pull = open_term(session, real(), pull_by("dmd", 1), no_targets)
        latents = torch.zeros(ROWS, TOKENS, DIM, requires_grad=True)
        for step in session.steps():
            draw = Draw(rng.generator(step), ROWS)
            pull.follow(Codes(latents, latents, None), fresh_draws(session, step, draw))
    assert latents.grad is None


def test_an_objective_without_a_fake_flow_has_nothing_to_train(tmp_path: Path) -> None:
    found = train(tmp_path, name="none")
    assert found["logged"] == [[]] * PLAN.num_steps
