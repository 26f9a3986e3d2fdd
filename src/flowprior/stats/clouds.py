"""Sets of vectors with their distances, in blocks that bound the memory."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray

from flowprior.core.rng import derive_seed

BLOCK_VALUES = 1 << 22
"""Float64 values of a matrix of distances or projections that exist at a time: 32 MiB."""
MIN_VECTORS = 20
"""Vectors that `match_report` needs of each set whatever k is; the two-sample test's bound."""


class Coverage(NamedTuple):
    """How two sets of vectors cover one another.

    Attributes:
        precision: Share of generated vectors within the ball of a real one.
        recall: Share of real vectors within the ball of a generated one.
        density: Mean number of real balls that a generated vector lies in, over k; may exceed 1.
        coverage: Share of real vectors whose ball contains a generated one.
    """

    precision: float
    recall: float
    density: float
    coverage: float


class Cloud(NamedTuple):
    """A set with what its own distances say: radii to the k-th neighbours, mean over pairs."""

    vectors: ndarray
    radii: ndarray
    mean_distance: float


def cloud_of(vectors: ndarray, k: int) -> Cloud:
    """A set [n, d] with the distances [n] to its k-th neighbours and the mean over all pairs."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float64)
    n, total, radii = len(vectors), 0.0, np.empty(len(vectors))
    for rows, distances in distance_blocks(vectors, vectors):
        total += float(distances.sum())
        distances[np.arange(len(distances)), np.arange(n)[rows]] = np.inf
        distances.partition(k - 1, axis=1)
        radii[rows] = distances[:, k - 1]
    return Cloud(vectors, radii, total / (n * (n - 1)))


def compare_clouds(generated: Cloud, real: Cloud, k: int) -> tuple[Coverage, float]:
    """Coverage and the mean distance between the sets, from one pass over all pairs."""
    n, m = len(generated.vectors), len(real.vectors)
    precise, contained, total = 0, 0, 0.0
    recalled, covered = np.zeros(m, dtype=bool), np.zeros(m, dtype=bool)
    for rows, distances in distance_blocks(generated.vectors, real.vectors):
        total += float(distances.sum())
        in_real = distances < real.radii
        precise += int(in_real.any(axis=1).sum())
        contained += int(in_real.sum())
        covered |= in_real.any(axis=0)
        recalled |= (distances < generated.radii[rows, None]).any(axis=0)
    found = Coverage(
        precise / n, float(recalled.mean()), contained / (k * n), float(covered.mean())
    )
    return found, total / (n * m)


def energy_of(one: Cloud, two: Cloud, between: float) -> float:
    """Energy distance of two sets, given the mean distance between them."""
    return 2 * between - one.mean_distance - two.mean_distance


def distance_blocks(a: ndarray, b: ndarray) -> Iterator[tuple[slice, ndarray]]:
    """Distances of some rows of `a` to all of `b`; of differences, so that copies are at exactly 0."""
    at_once = max(1, BLOCK_VALUES // len(b))
    for start in range(0, len(a), at_once):
        rows = slice(start, start + at_once)
        one, two = torch.from_numpy(a[rows]), torch.from_numpy(b)
        yield rows, torch.cdist(one, two, compute_mode="donot_use_mm_for_euclid_dist").numpy()


def subsample(vectors: ndarray, size: int, seed: int, name: str) -> ndarray:
    """At most so many rows, at random, float64; equal seeds and names give equal rows."""
    draw = np.random.default_rng(derive_seed(seed, "match_report", name))
    return np.asarray(vectors[draw.permutation(len(vectors))[:size]], dtype=np.float64)


def check_sets(sets: Mapping[str, ndarray], need: int, reason: str) -> None:
    """Whether sets are large enough and of one dim.

    Raises:
        ValueError: They are not; says which and why that matters.
    """
    for name, vectors in sets.items():
        if len(vectors) < need:
            raise ValueError(
                f"{name} holds {len(vectors)} vectors where at least {need} are needed, for {reason}"
            )
    dims = {name: vectors.shape[1] for name, vectors in sets.items()}
    if len(set(dims.values())) > 1:
        found = ", ".join(f"{name} {dim}" for name, dim in dims.items())
        raise ValueError(f"sets of one dim are compared, found {found}; project them alike first")
    for name, vectors in sets.items():
        if not np.isfinite(vectors).all():
            bad = int((~np.isfinite(vectors)).any(axis=1).sum())
            raise ValueError(
                f"{bad} of {len(vectors)} vectors of {name} hold NaN or infinite values; "
                "leave them out, or look where they come from"
            )
