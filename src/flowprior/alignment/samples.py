"""Objectives that compare the batch's latents with as many targets: no network, but the whole batch at once."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowprior.alignment.objective import Material, Sample
from flowprior.core import rng
from flowprior.core.codes import Codes
from flowprior.core.rng import Draw
from flowprior.stats.moments import Moments

MOMENT_VECTORS = 65_536
"""Targets that mean and covariance are taken of."""


class SlicedWasserstein:
    """Squared 2-Wasserstein distance of random one-dimensional projections (Kolouri et al., arXiv:1804.01947).

    A mean over directions on the unit sphere, so about |y - x|^2 / d for a latent and the target it
    is matched with.

    Args:
        targets: Draws targets.
        num_projections: Directions a step.
    """

    def __init__(self, targets: Sample, num_projections: int = 64) -> None:
        self.targets = targets
        self.num_projections = num_projections

    @classmethod
    def build(cls, material: Material) -> "SlicedWasserstein":
        """Takes the targets."""
        return cls(material.targets)

    def __call__(self, codes: Codes, draw: Draw) -> Tensor:
        latents, targets = _both(codes, self.targets, draw)
        shape = (latents.shape[-1], self.num_projections)
        directions = rng.normal(shape, latents, draw.generator)
        directions = directions / directions.norm(dim=0)
        with _full_precision(latents):
            return sliced_difference(latents, targets, directions)


def sliced_difference(
    latents: Float[Tensor, "n d"], targets: Float[Tensor, "n d"], directions: Float[Tensor, "d p"]
) -> Float[Tensor, ""]:
    """Mean over directions of the squared 2-Wasserstein distance between the projections of equally many points."""
    mine, theirs = (latents @ directions).sort(0).values, (targets @ directions).sort(0).values
    return (mine - theirs).square().mean()


class MaximumMeanDiscrepancy:
    """Squared MMD with inverse multiquadratic kernels of several widths (WAE-MMD, Tolstikhin et al., arXiv:1711.01558).

    The unbiased estimate, which may fall below 0.

    Args:
        targets: Draws targets, of about unit variance.
        max_vectors: Vectors of the batch, drawn at random, that are compared; the cost is their
            square.

    Raises:
        ValueError: Called with a single vector.
    """

    def __init__(self, targets: Sample, max_vectors: int = 2048) -> None:
        self.targets = targets
        self.max_vectors = max_vectors

    @classmethod
    def build(cls, material: Material) -> "MaximumMeanDiscrepancy":
        """Takes the targets."""
        return cls(material.targets)

    def __call__(self, codes: Codes, draw: Draw) -> Tensor:
        latents, targets = _both(codes, self.targets, draw)
        if len(latents) < 2:
            raise ValueError("mmd compares pairs of latents, of which one vector has none")
        if len(latents) > self.max_vectors:
            rows = rng.permutation(len(latents), latents, draw.generator)[: self.max_vectors]
            latents, targets = latents[rows], targets[: self.max_vectors]
        with _full_precision(latents):
            return squared_mmd(latents, targets)


def squared_mmd(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    """Squared MMD, averaged over the kernels c / (c + |x - y|^2), c = 2 d {0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10}."""
    widths = 2 * x.shape[-1] * torch.tensor([0.01, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]).to(x)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = (a.square().sum(-1, keepdim=True) + b.square().sum(-1) - 2 * a @ b.T).clamp(min=0)
        return torch.stack([width / (width + squared) for width in widths]).mean(0)

    def within(a: Tensor) -> Tensor:
        """Mean over pairs of two different points; a point's kernel with itself is 1."""
        n = len(a)
        return (kernel(a, a).sum() - n) / (n * (n - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()


class MomentMatching:
    """Squared differences of mean and covariance to the targets', each a mean over its entries.

    Args:
        mean: Of the targets, [d].
        covariance: Of the targets, [d, d].
    """

    def __init__(self, mean: Float[Tensor, " d"], covariance: Float[Tensor, "d d"]) -> None:
        self.mean = mean
        self.covariance = covariance

    @classmethod
    def build(cls, material: Material) -> "MomentMatching":
        """Takes mean and covariance of a sample of the targets."""
        moments = Moments(material.dim)
        moments.update(material.targets(MOMENT_VECTORS, rng.generator(0, "objective", "moments")))
        return cls(moments.mean.float(), moments.covariance.float())

    def __call__(self, codes: Codes, draw: Draw) -> Tensor:
        latents = draw.gather(codes.latents.float()).flatten(0, -2)
        mean = latents.mean(0)
        centred = latents - mean
        with _full_precision(latents):
            covariance = centred.T @ centred / len(latents)
        off = covariance - self.covariance.to(covariance)
        return (mean - self.mean.to(mean)).square().mean() + off.square().mean()


def _full_precision(latents: Tensor) -> AbstractContextManager[Any]:
    """Products in float32 also under autocast: differences of sums of many vectors would drown in bfloat16."""
    return torch.autocast(latents.device.type, enabled=False)


def _both(codes: Codes, targets: Sample, draw: Draw) -> tuple[Tensor, Tensor]:
    """Vectors of all ranks and as many targets."""
    latents = draw.gather(codes.latents.float()).flatten(0, -2)
    found = targets(len(latents), draw.generator).to(latents)
    if found.shape[-1] != latents.shape[-1]:
        raise ValueError(
            f"latents have {latents.shape[-1]} channels, the targets {found.shape[-1]}; "
            "run `dvc repro train_flow` after changing project.dim"
        )
    return latents, found
