"""The Fréchet distance of two Gaussians, of which FID is one."""

import torch
from jaxtyping import Float64
from torch import Tensor


def frechet_distance(
    mean: Float64[Tensor, " D"],
    covariance: Float64[Tensor, "D D"],
    other_mean: Float64[Tensor, " D"],
    other_covariance: Float64[Tensor, "D D"],
) -> float:
    """The squared distance |m - m'|² + tr(S + S' - 2 (S S')^½), in float64.

    The trace of the root is the sum of the singular values of S^½ S'^½: both roots are of symmetric
    matrices, so nothing becomes complex where a covariance is singular.
    """
    shared = torch.linalg.svdvals(_root(covariance) @ _root(other_covariance)).sum()
    spread = covariance.trace() + other_covariance.trace() - 2 * shared
    return float((mean - other_mean).square().sum() + spread)


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root
