"""What a step of each objective costs beside one of flow_prior: its value and gradient, and dmd's own fake flow.

Run with `make bench`. Seconds over flow_prior's seconds, medians of interleaved rounds in one process.
"""

from collections.abc import Callable

import pytest
import torch

from flowprior import FlowPrior
from flowprior.alignment.flows import DistributionMatching
from flowprior.alignment.names import OBJECTIVES
from flowprior.core import rng
from flowprior.core.codes import Codes
from flowprior.core.rng import Draw
from flowprior.flow.velocity import VelocityMLP
from flowprior.prior.projection import Projection

from .conftest import keep
from .side_by_side import side_by_side

SIZES = {"digits": (4, 128, 2, 64, 8), "paper": (32, 1024, 6, 4, 64)}
"""dim, width, depth, images, tokens of an image; of the paper's batch, what a CPU can hold in a second."""

FAKE_UPDATES = 5


def step(name: str, size: str) -> Callable[[], None]:
    """One evaluation with its gradient; for dmd, with the updates of its fake flow (without the optimiser)."""
    dim, width, depth, images, tokens = SIZES[size]
    with rng.scoped(0, "benchmark"):
        velocity = VelocityMLP(dim, width, depth)
    prior = FlowPrior(velocity, Projection(torch.eye(dim), 1.0, "identity", seed=0))
    pull = prior.objective(name, targets=lambda n, draw: torch.randn(n, dim, generator=draw))
    objective = pull.objective
    latents = torch.randn(images, tokens, dim, generator=rng.generator(0)).requires_grad_()
    codes = Codes(latents, latents, None)

    def work() -> None:
        loss = objective(codes, Draw(rng.generator(0, "draw"), images))
        if loss.requires_grad:
            loss.backward()
        if isinstance(objective, DistributionMatching):
            for update in range(FAKE_UPDATES):
                draw = Draw(rng.generator(0, "fake", update), images)
                objective.fake_loss(objective.fake, codes, draw).backward()

    return work


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_cost_of_a_step(benchmark, name: str, size: str) -> None:
    found = side_by_side(step(name, size), step("flow_prior", size), budget=2.0)
    benchmark.pedantic(step(name, size), rounds=1)
    keep(
        "objectives_at_digits_size" if size == "digits" else "objectives",
        {f"{name}_to_flow_prior": found.ratio},
    )
