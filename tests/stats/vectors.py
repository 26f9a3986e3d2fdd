"""Sets of vectors, and everything that compares two of them."""

from collections.abc import Callable

import numpy as np
from numpy import ndarray

from flowprior.stats.coverage import (
    coverage_of,
    energy_distance,
    neighbour_log_distances,
    sliced_wasserstein,
)
from flowprior.stats.match import match_report

PAIRS: list[Callable[..., object]] = [
    coverage_of,
    sliced_wasserstein,
    energy_distance,
    lambda a, b: neighbour_log_distances(a, b, 5),
    lambda a, b: match_report(a, b, normal(40, 3, 9), seed=0),
    lambda a, b: match_report(normal(40, 3, 9), a, b, seed=0),
]
"""Everything that compares two sets."""


def normal(n: int, d: int, seed: int = 0) -> ndarray:
    """Fixed standard normal numbers, float64."""
    return np.random.default_rng(seed).normal(size=(n, d))


def grid(n: int, d: int, seed: int = 0) -> ndarray:
    """Fixed small whole numbers: full of copies and of equal distances, all of them exact."""
    return np.random.default_rng(seed).integers(0, 3, size=(n, d)).astype(np.float64)


def report_of(latents: ndarray, n: int = 200, seed: int = 0) -> dict[str, float]:
    """Beside n standard normal targets and as many for a control."""
    dim = latents.shape[1]
    return match_report(latents, normal(n, dim, 1), normal(n, dim, 2), seed=seed)
