"""Latents, priors that know a Gaussian exactly or learned nothing, and shares of ranks."""

import torch
from hypothesis import settings
from torch import Tensor

from flowprior import FlowPrior
from flowprior.alignment.flows import FlowAlignment as Alignment
from flowprior.core import rng
from flowprior.core.codes import Codes
from flowprior.core.rng import Draw
from flowprior.flow.velocity import VelocityMLP
from flowprior.prior.projection import Projection
from flowprior.toy.closed_forms import gaussian_velocity

PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)
IMAGES, TOKENS, DIM = 6, 5, 3


def normal(*shape: int, tag: str = "x", dtype: torch.dtype = torch.float32) -> Tensor:
    """Fixed standard normal numbers."""
    return torch.randn(*shape, generator=rng.generator(0, tag), dtype=dtype)


class ExactVelocity(VelocityMLP):
    """The optimal field for a Gaussian target, in the clothes of a network; it remembers the times it was asked."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__(len(mean), 4, 1)
        self.exact = gaussian_velocity(mean, std)
        self.times: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.times.append(t)
        return self.exact(x, t)


MEAN, STD = torch.tensor([1.0, 0.0, -0.5]), torch.tensor([0.5, 1.0, 1.5])


def exact_prior() -> FlowPrior:
    """A prior that knows N(MEAN, STD^2) exactly."""
    return FlowPrior(ExactVelocity(MEAN, STD), Projection(torch.eye(DIM), 1.0, "identity", seed=0))


def learned_prior(seed: int = 0) -> FlowPrior:
    """A prior whose network answers something at every point, though nothing of use."""
    with rng.scoped(seed, "prior"):
        velocity = VelocityMLP(DIM, 8, 1)
        for parameter in velocity.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return FlowPrior(velocity, Projection(torch.eye(DIM), 1.0, "identity", seed=0))


def targets(n: int, generator: torch.Generator) -> Tensor:
    """Samples of what `exact_prior` knows."""
    return MEAN + STD * torch.randn(n, DIM, generator=generator)


def flow_alignment(prior: FlowPrior, num_draws: int) -> Alignment:
    """The paper's objective on a prior."""
    return Alignment(prior.velocity, prior.dim, num_draws)


def whole(batch: Tensor, dim: int) -> Tensor:
    """The share of a rank that is alone."""
    return batch


def part(batch: Tensor, dim: int, *, rank: int, ranks: int) -> Tensor:
    """The share of one of several ranks."""
    return batch.chunk(ranks, dim)[rank]


def draw(images: int = IMAGES, tag: str = "draw") -> Draw:
    """Fresh randomness for one process; the same at every call."""
    return Draw(rng.generator(0, tag), images, whole)


def plain(latents: Tensor) -> Codes:
    """Codes without a posterior."""
    return Codes(latents, latents, None)


def posterior(latents: Tensor, mean: Tensor, log_variance: Tensor) -> Codes:
    """Codes with one."""
    return Codes(latents, mean, log_variance)
