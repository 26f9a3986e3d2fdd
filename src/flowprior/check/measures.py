"""Figures of how a set of vectors compares with targets: spread, place, shape."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from flowprior.core.rng import derive_seed
from flowprior.stats.clouds import Cloud, cloud_of, compare_clouds, distance_blocks, energy_of
from flowprior.stats.coverage import sliced_wasserstein
from flowprior.stats.moments import moments_of
from flowprior.stats.two_sample import classifier_two_sample

NEIGHBOURS = 5
"""k of the balls of coverage."""
PLACE = 20
"""One in so many targets are a place, for the share of places where no latents are."""
DESERTED = 0.1
"""A place with less than this share of the latents that it should have is missed."""
CLIPPED = 0.99
"""Quantile of the distances to the centre to which vectors are drawn in before moments, for heavy tails."""
ROUNDS = 3
"""In which the centre is found."""
SAME = 0.02
"""Distances below this share of the targets' spread count as none: in tables of codes, for instance."""
ALIGNED = "aligned_"
"""Of the figures after latents were moved and scaled to the targets."""


class Scale(NamedTuple):
    """Centre and spread of vectors, little moved by outliers.

    Attributes:
        mean: [d].
        stds: Of each dim, [d].
        std: Root of the mean variance.
    """

    mean: ndarray
    stds: ndarray
    std: float


class Reference(NamedTuple):
    """Targets that sets are compared with, and what is computed of them once."""

    vectors: ndarray
    scale: Scale
    near: Cloud
    wide: ndarray


def drawn_in(vectors: Float[ndarray, "n d"]) -> Float[ndarray, "n d"]:
    """Vectors with those far out drawn in to the `CLIPPED` quantile of the distances to the centre.

    The centre is the mean of what is drawn in, so that latents of a subspace stay in it.
    """
    inside = vectors
    for _ in range(ROUNDS):
        centre = inside.mean(0)
        away = vectors - centre
        norms = np.linalg.norm(away, axis=1, keepdims=True)
        limit = np.quantile(norms, CLIPPED)
        inside = centre + away * np.minimum(1.0, limit / np.maximum(norms, 1e-300))
    return np.asarray(inside)


def scale_of(vectors: Float[ndarray, "n d"]) -> Scale:
    """Mean and standard deviations of vectors that are drawn in."""
    inside = drawn_in(vectors)
    stds = inside.std(0)
    return Scale(inside.mean(0), stds, float(np.sqrt(np.square(stds).mean())))


def reference_of(targets: Float[ndarray, "n d"]) -> Reference:
    """What sets are compared with.

    Raises:
        ValueError: Targets that are all alike.
    """
    scale = scale_of(targets)
    if not scale.std > 0:
        raise ValueError("targets are all alike: there is no spread that latents could have")
    least = SAME * scale.std * targets.shape[1] ** 0.5
    near = cloud_of(targets, NEIGHBOURS)
    wide = np.empty(len(targets))
    rank = max(NEIGHBOURS, len(targets) // PLACE)
    for rows, distances in distance_blocks(near.vectors, near.vectors):
        distances.partition(rank, axis=1)
        wide[rows] = distances[:, rank]
    near = near._replace(radii=np.maximum(near.radii, least))
    return Reference(near.vectors, scale, near, np.maximum(wide, least))


def aligned(vectors: Float[ndarray, "n d"], reference: Reference) -> Float[ndarray, "n d"]:
    """Vectors moved and scaled by one number to the centre and spread of the targets."""
    scale = scale_of(vectors)
    ratio = reference.scale.std / scale.std
    return np.asarray((vectors - scale.mean) * ratio + reference.scale.mean)


def fully_aligned(vectors: Float[ndarray, "n d"], reference: Reference) -> Float[ndarray, "n d"]:
    """Vectors by the linear map to the targets' mean and covariance: what is left has neither a scale nor axes."""
    inside, targets = drawn_in(vectors), drawn_in(reference.vectors)
    own, theirs = (
        _roots(np.cov(x, rowvar=False).reshape(x.shape[1], -1)) for x in (inside, targets)
    )
    return np.asarray((vectors - inside.mean(0)) @ own[1] @ theirs[0] + targets.mean(0))


def _roots(covariance: ndarray) -> tuple[ndarray, ndarray]:
    """The symmetric root of a covariance, and its inverse."""
    values, vectors = np.linalg.eigh(covariance)
    roots = np.sqrt(np.maximum(values, 1e-9 * values[-1]))
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def place_figures(vectors: Float[ndarray, "n d"], reference: Reference) -> dict[str, float]:
    """Precision, recall, density and coverage (k = 5), energy distance, missing places, local spread.

    `missing` is the share of targets in whose neighbourhood (a twentieth of the targets) next to nothing lies;
    `local_spread` the geometric mean of the distances to the k-th neighbour within the set, over the targets'.
    """
    least = SAME * reference.scale.std * vectors.shape[1] ** 0.5
    cloud = cloud_of(vectors, NEIGHBOURS)
    cloud = cloud._replace(radii=np.maximum(cloud.radii, least))
    cover, between = compare_clouds(cloud, reference.near, NEIGHBOURS)
    counts = np.zeros(len(reference.vectors))
    for _, distances in distance_blocks(cloud.vectors, reference.vectors):
        counts += (distances <= reference.wide).sum(0)
    share = len(vectors) / len(reference.vectors)
    expected = share * max(NEIGHBOURS, len(reference.vectors) // PLACE)
    dim = vectors.shape[1]
    density = np.log(cloud.radii).mean() - np.log(reference.near.radii).mean()
    return {
        **cover._asdict(),
        "missing": float((counts < DESERTED * expected).mean()),
        # Fewer vectors lie further apart, by the root of their share.
        "local_spread": float(np.exp(density + np.log(share) / dim)),
        "energy_distance": energy_of(cloud, reference.near, between),
    }


def shift_of(scale: Scale, reference: Reference) -> float:
    """Distance of the means in standard deviations of the targets along its own direction."""
    gap = scale.mean - reference.scale.mean
    length = float(np.linalg.norm(gap))
    if not length:
        return 0.0
    along = drawn_in(reference.vectors) @ (gap / length)
    return length / max(float(along.std()), 1e-3 * reference.scale.std)


def figures_of(vectors: Float[ndarray, "n d"], reference: Reference, seed: int) -> dict[str, float]:
    """All figures of a set; those under `aligned_` after it was moved and scaled to the targets."""
    scale = scale_of(vectors)
    varied = reference.scale.stds > 1e-3 * reference.scale.std
    ratios = scale.stds[varied] / reference.scale.stds[varied]
    moved = aligned(vectors, reference)
    test = derive_seed(seed, "check", "c2st") % 2**32
    return {
        "std_ratio": scale.std / reference.scale.std,
        "std_ratio_min": float(ratios.min()),
        "std_ratio_max": float(ratios.max()),
        "shift": shift_of(scale, reference),
        "effective_rank": moments_of(vectors).effective_rank,
        **place_figures(vectors, reference),
        "sliced_w2": sliced_wasserstein(vectors, reference.vectors, seed=seed),
        "c2st_accuracy": classifier_two_sample(vectors, reference.vectors, test),
        **{ALIGNED + name: value for name, value in place_figures(moved, reference).items()},
        ALIGNED + "c2st_accuracy": classifier_two_sample(moved, reference.vectors, test),
    }
