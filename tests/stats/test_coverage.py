"""Coverage and distances of sets against brute force and closed forms."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy import ndarray
from scipy import stats

from flowprior.stats.clouds import Coverage
from flowprior.stats.coverage import (
    coverage_of,
    energy_distance,
    neighbour_log_distances,
    sliced_wasserstein,
)
from flowprior.stats.neighbours import NeighbourIndex

from .vectors import grid, normal

PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)


def brute_force(generated: ndarray, real: ndarray, k: int) -> Coverage:
    """By the definitions, vector by vector."""

    def radius(vectors: ndarray, i: int) -> float:
        others = [math.dist(vectors[i], x) for j, x in enumerate(vectors) if j != i]
        return sorted(others)[k - 1]

    inside_real = np.array(
        [[math.dist(g, r) < radius(real, i) for i, r in enumerate(real)] for g in generated]
    )
    inside_generated = np.array(
        [[math.dist(g, r) < radius(generated, i) for r in real] for i, g in enumerate(generated)]
    )
    return Coverage(
        precision=inside_real.any(axis=1).mean(),
        recall=inside_generated.any(axis=0).mean(),
        density=inside_real.sum(axis=1).mean() / k,
        coverage=inside_real.any(axis=0).mean(),
    )


@settings(PROPERTY, max_examples=25)
@given(
    n=st.integers(8, 16),
    m=st.integers(8, 16),
    d=st.integers(1, 4),
    k=st.integers(1, 7),
    scale=st.sampled_from([0.3, 1.0, 3.0]),
    draw=st.sampled_from([normal, grid]),
)
def test_the_four_figures_are_those_of_their_definitions(
    n: int, m: int, d: int, k: int, scale: float, draw: Callable[..., ndarray]
) -> None:
    """Also among copies and ties, where only open balls and leaving out by index give them."""
    factor = scale if draw is normal else 1.0
    generated, real = factor * draw(n, d), draw(m, d, 1)
    assert coverage_of(generated, real, k) == pytest.approx(brute_force(generated, real, k))


def test_the_four_figures_of_a_drawn_example() -> None:
    """Real vectors 0, 1, 3, 10 have radii 1, 1, 2, 7; generated ones 0.5, 0.6 and 20 have 0.1, 0.1, 19.4."""
    real, generated = np.array([[0.0], [1], [3], [10]]), np.array([[0.5], [0.6], [20]])
    # 0.5 and 0.6 lie in the balls of 0 and 1, and 0.6 not in that of 3, which ends at 1; 20 in none.
    expected = Coverage(precision=2 / 3, recall=3 / 4, density=4 / 3, coverage=2 / 4)
    # 20 recalls what is beyond 0.6: 1, 3 and 10.
    assert coverage_of(generated, real, k=1) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 5, 60])
def test_a_set_covers_itself(k: int) -> None:
    """Without copies all shares are 1; an open ball holds its own vector and k - 1 more, which makes a density of 1."""
    vectors = normal(400, 3)
    found = coverage_of(vectors, vectors, k)
    assert found.precision == found.recall == found.coverage == 1
    assert found.density == pytest.approx(1, abs=1e-12)


def test_a_fresh_sample_covers_as_theory_says() -> None:
    """Expected coverage of n by n vectors is 1 - (n - 1)...(n - k) / ((2n - 1)...(2n - k)); density is 1."""
    n, k = 1500, 5
    found = coverage_of(normal(n, 4), normal(n, 4, 1), k)
    exact = 1 - np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])
    # Standard errors are about sqrt(0.03 / 1500) = 0.005 and, over seeds, 0.01 for the density.
    assert found.coverage == pytest.approx(exact, abs=0.02)
    assert found.density == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("place", ["outside", "copy of a real vector", "the mean"])
def test_a_point_mass_covers_and_recalls_nothing(place: str) -> None:
    """At most the balls that it happens to lie in are covered; its own balls are empty."""
    real = normal(400, 8)
    where = {"outside": real[0] + 100, "copy of a real vector": real[3], "the mean": real.mean(0)}
    found = coverage_of(np.tile(where[place], (300, 1)), real)
    assert found.recall == 0
    assert found.coverage < 0.5 if place == "the mean" else found.coverage < 0.1
    assert (found.precision == 0) == (place == "outside")


def test_copies_count_as_neighbours_at_distance_zero() -> None:
    """With as many copies as k every ball is empty, even of itself; with one copy fewer it is not."""
    distinct = normal(30, 3)
    empty = coverage_of(distinct, np.repeat(distinct, 4, axis=0), k=3)
    assert (empty.precision, empty.density, empty.coverage) == (0, 0, 0)
    one_less = coverage_of(distinct, np.repeat(distinct, 3, axis=0), k=3)
    assert (one_less.precision, one_less.coverage) == (1, 1)


def test_exchanging_the_sets_exchanges_precision_and_recall() -> None:
    """Both ask whether a vector of one set lies in a ball of the other."""
    one, two = normal(60, 3), 0.5 * normal(90, 3, 1)
    forth, back = coverage_of(one, two), coverage_of(two, one)
    assert (forth.precision, forth.recall) == (back.recall, back.precision)


def test_shrinking_keeps_precision_and_loses_recall_and_coverage() -> None:
    """Precision and density do not notice: at the mode all is dense."""
    real, fresh = normal(500, 3), normal(500, 3, 1)
    found = [coverage_of(scale * fresh, real) for scale in (1.0, 0.5, 0.1)]
    for figure in ("recall", "coverage"):
        values = [getattr(step, figure) for step in found]
        assert values == sorted(values, reverse=True)
        assert values[-1] < 0.2
    assert found[-1].precision == 1
    assert found[-1].density > 0.9


def test_order_scale_and_shift_do_not_matter() -> None:
    """Powers of two and whole numbers, so that no distance is rounded."""
    generated, real = grid(50, 3), grid(40, 3, 1)
    moved = coverage_of(4 * generated[::-1] + 7, 4 * real[::-1] + 7)
    assert moved == coverage_of(generated, real)


@PROPERTY
@given(
    a=arrays.arrays(np.float64, st.integers(1, 9), elements=st.floats(-5, 5)),
    b=arrays.arrays(np.float64, st.integers(1, 9), elements=st.floats(-5, 5)),
)
def test_in_one_dimension_it_is_the_distance_of_the_quantile_functions(
    a: ndarray, b: ndarray
) -> None:
    """Of sets of any two sizes: those of the sets repeated to their common multiple, matched in order."""
    matched = np.sort(np.repeat(a, len(b))) - np.sort(np.repeat(b, len(a)))
    found = sliced_wasserstein(a[:, None], b[:, None], num_projections=3)
    assert found == pytest.approx(np.sqrt((matched**2).mean()), rel=1e-9, abs=1e-12)


def test_the_distance_of_unequal_sets_of_a_drawn_example() -> None:
    """From {0, 3} to {0, 1, 5}: gaps 0, 1, 2, 2 over 1/3, 1/6, 1/6, 1/3 of the mass."""
    a, b = np.array([[0.0], [3]]), np.array([[5.0], [0], [1]])
    assert sliced_wasserstein(a, b) == pytest.approx(math.sqrt(13 / 6), rel=1e-12)


def test_it_is_at_least_the_first_wasserstein_distance_of_scipy() -> None:
    """In one dimension; they are equal where all gaps are."""
    a, b = normal(70, 1), 2 + 3 * normal(40, 1, 1)
    assert sliced_wasserstein(a, b) > stats.wasserstein_distance(a[:, 0], b[:, 0])
    shifted = sliced_wasserstein(a, a + 3)
    assert shifted == pytest.approx(stats.wasserstein_distance(a[:, 0], a[:, 0] + 3), rel=1e-12)


@pytest.mark.parametrize("dim", [1, 4, 16])
def test_a_shift_costs_its_squared_length_over_the_dim(dim: int) -> None:
    """(direction . c)^2 has mean |c|^2 / d over directions, and each gap is exactly direction . c."""
    vectors, shift = normal(50, dim), normal(1, dim, 1)
    found = sliced_wasserstein(vectors, vectors + shift, num_projections=4000)
    # (direction . c)^2 d / |c|^2 has a variance below 2: standard error 0.022.
    assert found**2 == pytest.approx((shift**2).sum() / dim, rel=0.09)


def test_a_scale_costs_its_difference() -> None:
    """From x to 3 x of mean 0 and unit variance along each direction: sorted gaps are 2 x."""
    corners = np.concatenate([np.eye(3), -np.eye(3)]) * math.sqrt(3)
    assert sliced_wasserstein(corners, 3 * corners) == pytest.approx(2, rel=1e-9)


def test_equal_sets_are_at_sliced_distance_zero_in_any_order_and_multiplicity() -> None:
    """A set repeated is the same distribution."""
    vectors = normal(40, 5)
    # Products of vectors with directions may be rounded differently in another order.
    assert sliced_wasserstein(vectors, vectors[::-1]) == pytest.approx(0, abs=1e-12)
    assert sliced_wasserstein(vectors, np.tile(vectors, (3, 1))) == pytest.approx(0, abs=1e-12)


def test_the_sliced_distance_is_symmetric_and_depends_on_the_seed_alone() -> None:
    """Whatever NumPy's global stream does."""
    a, b = normal(40, 3), normal(30, 3, 1) + 1
    first = sliced_wasserstein(a, b, seed=4)
    np.random.rand(3)
    assert sliced_wasserstein(a, b, seed=4) == first
    assert sliced_wasserstein(b, a, seed=4) == pytest.approx(first, rel=1e-12)
    assert sliced_wasserstein(a, b, seed=5) != first


@PROPERTY
@given(n=st.integers(2, 12), m=st.integers(2, 12), d=st.integers(1, 4))
def test_the_energy_distance_is_that_of_its_definition(n: int, m: int, d: int) -> None:
    """Pair by pair, within a set only those of different indices."""
    a, b = normal(n, d), 0.5 * normal(m, d, 1) + 1

    def within(vectors: ndarray) -> float:
        return np.mean([math.dist(x, y) for x in vectors for y in vectors if x is not y])

    between = np.mean([math.dist(x, y) for x in a for y in b])
    rows_a, rows_b = list(a), list(b)
    exact = 2 * between - within(rows_a) - within(rows_b)
    assert energy_distance(a, b) == pytest.approx(exact, rel=1e-10, abs=1e-12)


def test_the_energy_distance_of_two_point_masses_is_twice_their_distance() -> None:
    """Nothing within; and 0 for copies of one point."""
    a, b = np.zeros((5, 2)), np.tile([3.0, 4.0], (7, 1))
    assert energy_distance(a, b) == pytest.approx(10, rel=1e-12)
    assert energy_distance(a, a[:3]) == 0


def test_the_energy_distance_of_gaussians_has_its_closed_form() -> None:
    """In one dimension, of N(0, 1) and N(0, s^2): (2 / sqrt(pi)) (sqrt(2 + 2 s^2) - 1 - s)."""
    found = energy_distance(normal(3000, 1), 3 * normal(3000, 1, 1))
    exact = 2 / math.sqrt(math.pi) * (math.sqrt(2 + 2 * 9) - 1 - 3)
    # Of the same sums over 20 pairs of samples the standard deviation is about 0.02.
    assert found == pytest.approx(exact, abs=0.08)


def test_the_energy_distance_is_unbiased_under_the_null() -> None:
    """Over 200 pairs of samples of 20 it is around 0, and negative for many of them."""
    found = np.array(
        [energy_distance(normal(20, 2, i), normal(20, 2, 1000 + i)) for i in range(200)]
    )
    assert abs(found.mean()) < 4 * found.std() / math.sqrt(len(found))
    assert 0.3 < (found < 0).mean() < 0.8


def test_log_distances_go_forth_and_back() -> None:
    """Latents to their targets first; then the other way round, by the same index."""
    latents, targets = 0.5 * normal(80, 3), normal(60, 3, 1)
    forward, reverse = neighbour_log_distances(latents, targets, 5)
    assert forward == NeighbourIndex(targets).mean_log_distance(latents, (5,))[5]
    assert reverse == NeighbourIndex(latents).mean_log_distance(targets, (5,))[5]
    assert neighbour_log_distances(targets, latents, 5) == (reverse, forward)


def test_collapse_lowers_the_forward_distance_and_raises_the_reverse_one() -> None:
    """The paper's proxy alone rewards latents that sit on the mode."""
    targets, fresh = normal(500, 3), normal(500, 3, 1)
    collapsed, ideal = (neighbour_log_distances(s * fresh, targets, 5) for s in (0.1, 1.0))
    assert collapsed[0] < ideal[0] - 0.1
    assert collapsed[1] > ideal[1] + 0.5
