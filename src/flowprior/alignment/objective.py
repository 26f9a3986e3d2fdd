"""What an objective is: codes and randomness in, one number out; and those that ask neither flow nor targets."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowprior.core.codes import Codes
from flowprior.core.rng import Draw


@runtime_checkable
class Objective(Protocol):
    """A loss of this rank's latents, a mean over vectors and dims; it is weighted by `align.weight`."""

    def __call__(self, codes: Codes, draw: Draw) -> Tensor: ...


Sample = Callable[[int, torch.Generator], Float[Tensor, "n d"]]
"""Draws so many vectors of the target distribution."""


class Material(NamedTuple):
    """What objectives are built from; each takes what it needs.

    Attributes:
        velocity: The frozen flow of the targets.
        dim: Channels d of targets and latents.
        targets: Draws targets.
        num_draws: Draws of noise and time for each latent.
        t_max: The largest time that is looked at.
    """

    velocity: nn.Module
    dim: int
    targets: Sample
    num_draws: int
    t_max: float


class Unaligned:
    """No pull at all: the paper's AE row."""

    @classmethod
    def build(cls, material: Material) -> "Unaligned":
        """Build the objective; it needs none of the material."""
        return cls()

    def __call__(self, codes: Codes, draw: Draw) -> Tensor:
        return codes.latents.new_zeros(())


class GaussianKL:
    """KL to N(0, I), mean over dims: of each posterior, or of N(batch mean, batch variance) without one."""

    @classmethod
    def build(cls, material: Material) -> "GaussianKL":
        """Build the objective; it needs none of the material."""
        return cls()

    def __call__(self, codes: Codes, draw: Draw) -> Tensor:
        if codes.log_variance is not None:
            mean, log_variance = codes.mean, codes.log_variance
        else:
            vectors = draw.gather(codes.latents.float()).flatten(0, -2)
            mean = vectors.mean(0)
            log_variance = vectors.var(0, correction=0).clamp(min=1e-12).log()
        return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
