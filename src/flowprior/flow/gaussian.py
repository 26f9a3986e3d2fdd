"""Closed forms for Gaussian targets: what a perfect flow would answer."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from flowprior.flow.losses import Velocity


def gaussian_velocity(mean: Tensor | float, std: Tensor | float) -> Velocity:
    """The optimal velocity for the target N(mean, diag(std^2)).

    u(x, t) = mean + (t s^2 - (1 - t)) / ((1 - t)^2 + t^2 s^2) (x - t mean), per dimension.

    Args:
        mean: [d] or a number.
        std: Standard deviations s, [d] or a number.
    """

    def velocity(x: Float[Tensor, "*batch d"], t: Float[Tensor, "*#batch"]) -> Tensor:
        t = t.unsqueeze(-1)
        slope = (t * std**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * std**2)
        return mean + slope * (x - t * mean)

    return velocity


def gaussian_alignment_loss(
    latents: Float[Tensor, "*batch d"], mean: Tensor | float, std: Tensor | float
) -> Float[Tensor, "*batch"]:
    """The alignment loss of a latent under a perfect flow for N(mean, diag(std^2)), times uniform.

    L(y) = (pi / 4) mean over dims of (s + (y - mean)^2 / s). Its average over the target is (pi /
    2) mean(s): the irreducible flow matching loss, which is not zero.
    """
    deviation = latents - mean
    spread = torch.as_tensor(std, dtype=latents.dtype, device=latents.device)
    return math.pi / 4 * (spread + deviation.square() / spread).mean(-1)
