"""The negative log-density of a target: exact where there is a closed form, else of a kernel estimate."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flowprior.core import rng
from flowprior.toy.config import Study
from flowprior.toy.targets import Target2D

KERNEL_BLOCK = 2**19
"""Pairs of points and samples at once, 2 MiB: what stays in a core's cache is four times as fast."""
NEGLIGIBLE = -80.0
"""Nats below the nearest sample's share, where others stop: exp(-80) adds nothing, exp(-90) is slow (subnormal)."""


class ReferenceNLL:
    """Negative log-density of a target in nats: exact where there is a closed form, else of a kernel estimate.

    Args:
        target: Whose density.
        samples: Of the target, [m, 2], for the kernel estimate; none are needed where the density is exact.
        bandwidth: Standard deviation of the kernel.

    Attributes:
        kind: `exact` or `kde`.
    """

    def __init__(self, target: Target2D, samples: Tensor, bandwidth: float) -> None:
        self.kind: Literal["exact", "kde"] = "kde" if target.density is None else "exact"
        self._target = target
        self._samples = samples
        self._bandwidth = bandwidth

    def __call__(self, points: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
        if self._target.density is not None:
            return -self._target.density.log_density(points)
        return -kernel_log_density(points, self._samples, self._bandwidth)


def reference_nll(cfg: Study, target: Target2D) -> ReferenceNLL:
    """The density that a target's NLL is read from; the two kinds never meet in one figure."""
    scale = cfg.scale.density
    count = 0 if target.density is not None else scale.kde_samples
    samples = target.sample(count, rng.generator(cfg.seed, target.name, "kde"))
    return ReferenceNLL(target, samples, scale.bandwidth)


def kernel_log_density(
    points: Float[Tensor, "n 2"], samples: Float[Tensor, "m 2"], bandwidth: float = 0.1
) -> Float[Tensor, " n"]:
    """Log of a Gaussian kernel density estimate, in nats; Eq. (27), arXiv:2506.05240.

    Nothing is added inside the logarithm, so far points have a very low density, not a floor.

    Args:
        points: Where to evaluate.
        samples: What the density is of.
        bandwidth: Standard deviation of the kernel.

    Raises:
        ValueError: There are no samples, or the bandwidth is not positive.
    """
    if not len(samples) or not bandwidth > 0:
        raise ValueError(
            f"a kernel density needs samples and a positive bandwidth, found {len(samples)} and {bandwidth}"
        )
    centre = samples.mean(0)
    x, y = (points - centre) / bandwidth, (samples - centre) / bandwidth
    rows = max(1, KERNEL_BLOCK // len(samples))
    half_norms = 0.5 * y.square().sum(-1)
    parts = []
    for part in x.split(rows):
        exponents = part @ y.T - half_norms
        largest = exponents.amax(-1, keepdim=True)
        total = exponents.sub_(largest).clamp_(min=NEGLIGIBLE).exp_().sum(-1)
        parts.append(largest.squeeze(-1) + total.log() - 0.5 * part.square().sum(-1))
    whole = torch.cat(parts) if parts else points.new_zeros(0)
    return whole - math.log(len(samples) * 2 * math.pi * bandwidth**2)
