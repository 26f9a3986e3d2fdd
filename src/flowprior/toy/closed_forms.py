"""Closed forms for Gaussian targets: what a perfect flow would answer."""

import math
from typing import NamedTuple

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


class GaussianMixture(NamedTuple):
    """A mixture of isotropic Gaussians.

    Attributes:
        means: [k, d].
        std: Standard deviation of every component.
        weights: [k], summing to 1.
    """

    means: Tensor
    std: float
    weights: Tensor

    def log_density(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Log-density in nats."""
        return self._log_joint(x, torch.ones((), dtype=x.dtype)).logsumexp(-1)

    def velocity(
        self, x: Float[Tensor, "*batch d"], t: Float[Tensor, "*#batch"]
    ) -> Float[Tensor, "*batch d"]:
        """The optimal velocity: each component's, weighted by its share of the density at (x, t)."""
        shares = self._log_joint(x, t).softmax(-1).unsqueeze(-1)
        t = t.unsqueeze(-1).unsqueeze(-1)
        slope = (t * self.std**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * self.std**2)
        each = self.means + slope * (x.unsqueeze(-2) - t * self.means)
        return (shares * each).sum(-2)

    def score(
        self, x: Float[Tensor, "*batch d"], t: Float[Tensor, "*#batch"]
    ) -> Float[Tensor, "*batch d"]:
        """Gradient of the log-density of x_t = (1 - t) noise + t data, exact also at t = 1."""
        shares = self._log_joint(x, t).softmax(-1).unsqueeze(-1)
        t = t.unsqueeze(-1).unsqueeze(-1)
        variance = (1 - t) ** 2 + t**2 * self.std**2
        return (shares * (t * self.means - x.unsqueeze(-2)) / variance).sum(-2)

    def _log_joint(self, x: Tensor, t: Tensor) -> Tensor:
        """Log of weight times density of each component at time t, [..., k]."""
        t = t.unsqueeze(-1)
        variance = (1 - t) ** 2 + t**2 * self.std**2
        squared = (x.unsqueeze(-2) - t.unsqueeze(-1) * self.means).square().sum(-1)
        normaliser = 0.5 * x.shape[-1] * torch.log(2 * math.pi * variance)
        return self.weights.log() - 0.5 * squared / variance - normaliser
