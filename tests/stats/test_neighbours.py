"""Distances to neighbours against brute force, and what a copy counts for."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray

from flowprior.stats.neighbours import FLOOR, NeighbourIndex

PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)


def normal(n: int, d: int, seed: int = 0) -> ndarray:
    """Fixed standard normal numbers, float32."""
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def brute_force(targets: ndarray, queries: ndarray) -> ndarray:
    """All squared distances, ascending, in float64."""
    a, b = queries.astype(np.float64), targets.astype(np.float64)
    return np.sort(((a[:, None] - b[None]) ** 2).sum(-1), axis=1)


@PROPERTY
@given(m=st.integers(1, 60), n=st.integers(1, 40), d=st.integers(1, 12), data=st.data())
def test_distances_are_those_of_brute_force(m: int, n: int, d: int, data: st.DataObject) -> None:
    """Squared, ascending, for any k; one query or many, for which faiss has other code."""
    k = data.draw(st.integers(1, m))
    targets, queries = normal(m, d), normal(n, d, seed=1)
    found = NeighbourIndex(targets).squared_distances(queries, k)
    assert found.shape == (n, k)
    # Float32: |q|^2 + |t|^2 - 2 q t loses digits where a distance is far below the norms (about 10).
    np.testing.assert_allclose(found, brute_force(targets, queries)[:, :k], rtol=1e-4, atol=1e-4)


def test_mean_log_distances_are_those_of_brute_force() -> None:
    """Mean of log r_k, the distance itself and not its square, for every k that is asked for."""
    targets, queries = normal(500, 8), normal(100, 8, seed=1)
    found = NeighbourIndex(targets).mean_log_distance(queries, (1, 5, 10))
    exact = np.log(np.sqrt(brute_force(targets, queries)))
    assert found == pytest.approx({k: exact[:, k - 1].mean() for k in (1, 5, 10)}, abs=1e-5)
    assert found[1] < found[5] < found[10]


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_scaling_everything_adds_the_log_of_the_scale(scale: float) -> None:
    """Log r is log-homogeneous: what makes it a proxy for a log-density up to a constant."""
    targets, queries = normal(200, 4), normal(50, 4, seed=1)
    before = NeighbourIndex(targets).mean_log_distance(queries, (3,))[3]
    after = NeighbourIndex(scale * targets).mean_log_distance(scale * queries, (3,))[3]
    assert after == pytest.approx(before + math.log(scale), abs=1e-5)


def test_the_proxy_estimates_the_log_density_of_a_gaussian() -> None:
    """-log p = d log r_k + const: queries far out have the larger distance, by the difference of their densities."""
    targets, d = normal(20_000, 2), 2
    index = NeighbourIndex(targets)

    def proxy(radius: float) -> float:
        angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
        circle = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return d * index.mean_log_distance(circle.astype(np.float32), (10,))[10]

    # The error of d log r_10 is about 1 / sqrt(10) at a point, and less on average over a circle.
    assert proxy(2.0) - proxy(0.5) == pytest.approx((2.0**2 - 0.5**2) / 2, abs=0.2)


@pytest.mark.parametrize("offset", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("n", [3, 200])
def test_a_copy_counts_as_the_floor(n: int, offset: float) -> None:
    """Log 1e-6 and not minus infinity, for few queries and for many, near the origin and far from it."""
    targets = normal(200, 8) + np.float32(offset)
    found = NeighbourIndex(targets).mean_log_distance(targets[:n], (1,))[1]
    assert found == pytest.approx(0.5 * math.log(FLOOR), abs=1e-9)
    assert found == pytest.approx(math.log(1e-6), abs=1e-9)


def test_vectors_need_not_be_contiguous() -> None:
    """Views and float64 arrays give what their copies give."""
    targets, queries = normal(30, 12), normal(5, 12, seed=1)
    found = NeighbourIndex(targets[:, ::2]).squared_distances(queries[:, ::2].astype(np.float64), 2)
    again = NeighbourIndex(targets[:, ::2].copy()).squared_distances(queries[:, ::2].copy(), 2)
    np.testing.assert_array_equal(found, again)


@pytest.mark.parametrize("k", [0, -1, 6])
def test_more_neighbours_than_targets_are_an_error(k: int) -> None:
    """It says how many there may be and how many were asked for."""
    index = NeighbourIndex(normal(5, 3))
    with pytest.raises(ValueError, match=f"between 1 and the 5 targets, found {k}"):
        index.squared_distances(normal(2, 3), k)
    with pytest.raises(ValueError, match=f"found {max(k, 6)}"):
        index.mean_log_distance(normal(2, 3), (1, max(k, 6)))
