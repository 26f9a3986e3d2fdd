"""Do latents spread as the targets do, or sit on their modes? Two sets compared."""

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from flowprior.core.rng import derive_seed
from flowprior.stats.clouds import (
    BLOCK_VALUES,
    Coverage,
    check_sets,
    cloud_of,
    compare_clouds,
    energy_of,
)
from flowprior.stats.neighbours import NeighbourIndex


def coverage_of(
    generated: Float[ndarray, "n d"], real: Float[ndarray, "m _d"], k: int = 5
) -> Coverage:
    """Precision and recall (Kynkäänniemi et al., 2019), density and coverage (Naeem et al., 2020, arXiv:2002.09797).

    The ball of a vector reaches to its k-th nearest neighbour within its own set; it is left out
    itself by its index, so that a copy of it is a neighbour at distance 0. Balls are open (distance
    < radius), as in the authors' package prdc 0.2. A vector with k copies or more in its own set
    therefore has an empty ball, which does not even contain itself: real sets of few distinct
    vectors are covered by nothing, and generated ones that are all alike recall nothing.

    Raises:
        ValueError: Fewer than k + 1 vectors in a set, different dims, or values that are not finite.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, found {k}")
    reason = f"a neighbour of rank k = {k} besides the vector itself; add vectors or lower k"
    check_sets({"generated": generated, "real": real}, k + 1, reason)
    found, _ = compare_clouds(cloud_of(generated, k), cloud_of(real, k), k)
    return found


def sliced_wasserstein(
    a: Float[ndarray, "n d"],
    b: Float[ndarray, "m _d"],
    num_projections: int = 128,
    seed: int = 0,
) -> float:
    """Sliced 2-Wasserstein distance: root of the mean over random directions of the squared 1-D distance.

    In one dimension the distance is that of the quantile functions, integrated exactly also where
    the sets differ in size. In units of the vectors; a shift by c alone costs |c|^2 / d in the
    expected square. Bonneel et al., 2015.

    Raises:
        ValueError: An empty set, different dims, values that are not finite, or no projections.
    """
    if num_projections < 1:
        raise ValueError(f"num_projections must be at least 1, found {num_projections}")
    check_sets({"a": a, "b": b}, 1, "a distribution")
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    draw = np.random.default_rng(derive_seed(seed, "sliced_wasserstein"))
    directions = draw.normal(size=(num_projections, a.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    widths, in_a, in_b = _common_quantiles(len(a), len(b))
    at_once = max(1, BLOCK_VALUES // len(widths))
    total = 0.0
    for start in range(0, num_projections, at_once):
        some = directions[start : start + at_once]
        gaps = np.sort(some @ a.T, axis=1)[:, in_a] - np.sort(some @ b.T, axis=1)[:, in_b]
        total += float((gaps**2 @ widths).sum())
    return float(np.sqrt(total / num_projections))


def energy_distance(a: Float[ndarray, "n d"], b: Float[ndarray, "m _d"]) -> float:
    """Energy distance 2 E|a - b| - E|a - a'| - E|b - b'|, without a root (Székely and Rizzo, 2013).

    Within a set pairs of different indices alone count, so that the estimate is unbiased: for two
    samples of one distribution it lies around 0 and is slightly negative about half the time. In
    units of the vectors.

    Raises:
        ValueError: Fewer than two vectors in a set, different dims, or values that are not finite.
    """
    check_sets({"a": a, "b": b}, 2, "a pair within the set")
    one, two = cloud_of(a, 1), cloud_of(b, 1)
    _, between = compare_clouds(one, two, 1)
    return energy_of(one, two, between)


def neighbour_log_distances(
    latents: Float[ndarray, "n d"], targets: Float[ndarray, "m _d"], k: int
) -> tuple[float, float]:
    """Mean log r_k of latents to their k-th nearest target, and of targets to their k-th nearest latent.

    The first is the paper's proxy (§5.2, arXiv:2506.05240) and falls as latents collapse onto modes;
    the second rises with every mode that latents leave.

    Raises:
        ValueError: Fewer than k vectors in a set, different dims, or values that are not finite.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, found {k}")
    reason = f"a neighbour of rank k = {k}; add vectors or lower k"
    check_sets({"latents": latents, "targets": targets}, k, reason)
    forward = NeighbourIndex(targets).mean_log_distance(latents, (k,))[k]
    reverse = NeighbourIndex(latents).mean_log_distance(targets, (k,))[k]
    return forward, reverse


def _common_quantiles(n: int, m: int) -> tuple[ndarray, ndarray, ndarray]:
    """Widths of the steps that the quantile functions of n and of m values share, and the ranks there."""
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    return np.diff(ends, prepend=0) / (n * m), (ends - 1) // m, (ends - 1) // n
