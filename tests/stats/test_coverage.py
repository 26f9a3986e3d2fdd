"""Coverage and distances of sets against brute force and closed forms; collapse is noticed, a fresh sample is not."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy import ndarray
from scipy import stats

from flowprior.stats import clouds as module
from flowprior.stats.clouds import Coverage
from flowprior.stats.coverage import (
    coverage_of,
    energy_distance,
    neighbour_log_distances,
    sliced_wasserstein,
)
from flowprior.stats.match import collapse_signs, match_report
from flowprior.stats.neighbours import NeighbourIndex

pytestmark = pytest.mark.filterwarnings("ignore:Stochastic Optimizer")

PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)
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


# --- precision, recall, density, coverage -----------------------------------------------------------


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


# --- the sliced Wasserstein distance ----------------------------------------------------------------


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


# --- the energy distance ----------------------------------------------------------------------------


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


# --- distances to neighbours ------------------------------------------------------------------------


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


# --- the report -------------------------------------------------------------------------------------

KEYS = {
    *("forward_log_r5", "forward_log_r5_control", "reverse_log_r5", "reverse_log_r5_control"),
    *("precision", "recall", "recall_control", "density", "coverage", "coverage_control"),
    *("sliced_w2", "sliced_w2_control", "energy_distance", "energy_distance_control"),
    *("c2st_accuracy", "effective_rank", "effective_rank_targets", "num_latents", "num_targets"),
    *("std_ratio_min", "std_ratio_median", "std_ratio_max"),
}


def report_of(latents: ndarray, n: int = 200, seed: int = 0) -> dict[str, float]:
    """Beside n standard normal targets and as many for a control."""
    dim = latents.shape[1]
    return match_report(latents, normal(n, dim, 1), normal(n, dim, 2), seed=seed)


def test_the_report_has_its_keys_and_plain_finite_floats() -> None:
    """What goes into a JSON file; the key of the neighbours carries k."""
    found = report_of(normal(200, 4))
    assert set(found) == KEYS
    assert all(type(value) is float and math.isfinite(value) for value in found.values())
    other = match_report(normal(30, 2), normal(30, 2, 1), normal(30, 2, 2), seed=0, k=3)
    assert set(other) == {key.replace("r5", "r3") for key in KEYS}


def test_the_report_holds_what_the_functions_give() -> None:
    """For sets that need no cut; order matters to the two-sample test alone."""
    latents, targets, control = 0.7 * normal(60, 3), normal(90, 3, 1), normal(60, 3, 2)
    found = match_report(latents, targets, control, seed=3)
    for vectors, suffix in ((latents, ""), (control, "_control")):
        cover = coverage_of(vectors, targets)
        forward, reverse = neighbour_log_distances(vectors, targets, 5)
        expected = {
            "recall": cover.recall,
            "coverage": cover.coverage,
            "forward_log_r5": forward,
            "reverse_log_r5": reverse,
            "sliced_w2": sliced_wasserstein(vectors, targets, seed=3),
            "energy_distance": energy_distance(vectors, targets),
        }
        for key, value in expected.items():
            # Sums in another order; float32 in the index.
            assert found[key + suffix] == pytest.approx(value, rel=1e-5, abs=1e-10), key
    cover = coverage_of(latents, targets)
    assert (found["precision"], found["density"]) == pytest.approx((cover.precision, cover.density))
    ratios = latents.std(axis=0) / targets.std(axis=0)
    keys = ("std_ratio_min", "std_ratio_median", "std_ratio_max")
    expected = (ratios.min(), np.median(ratios), ratios.max())
    assert [found[key] for key in keys] == pytest.approx(expected, rel=1e-12)


def test_the_ranks_are_those_of_the_sets() -> None:
    """A plane among four dims has rank 2 at most."""
    latents = normal(200, 4)
    latents[:, 2:] = 0
    found = report_of(latents)
    assert found["effective_rank"] == pytest.approx(2, abs=0.05)
    assert found["effective_rank_targets"] == pytest.approx(4, abs=0.1)
    assert found["std_ratio_min"] == 0


def test_a_control_in_place_of_the_latents_gives_the_control() -> None:
    """One set under both names has the same figures twice."""
    control = normal(100, 3, 2)
    found = match_report(control, normal(100, 3, 1), control, seed=0)
    for key in KEYS:
        if key.endswith("_control"):
            plain = found[key.removesuffix("_control")]
            assert plain == pytest.approx(found[key], rel=1e-5, abs=1e-10)


def test_latents_and_control_are_cut_to_one_size() -> None:
    """Coverage grows with the number of vectors: the control has to be as few as the latents, and the reverse."""
    targets = normal(300, 3, 1)
    few, many = normal(60, 3), normal(900, 3, 2)
    found = match_report(few, targets, many, seed=0)
    assert (found["num_latents"], found["num_targets"]) == (60, 300)
    assert found["coverage"] == pytest.approx(found["coverage_control"], abs=0.15)
    assert found["coverage_control"] < coverage_of(many, targets).coverage - 0.1
    swapped = match_report(many, targets, few, seed=0)
    assert swapped["num_latents"] == 60
    assert swapped["coverage"] == pytest.approx(swapped["coverage_control"], abs=0.15)


def test_no_set_is_larger_than_the_bound() -> None:
    """All three are cut, and by a permutation: vectors in order of size are not cut to the smallest."""
    latents, targets, control = (np.sort(normal(2000, 2, seed), axis=0) for seed in range(3))
    found = match_report(latents, targets, control, seed=0, max_vectors=100)
    assert (found["num_latents"], found["num_targets"]) == (100, 100)
    assert found["std_ratio_median"] == pytest.approx(1, abs=0.3)
    assert found["c2st_accuracy"] < 0.65


def test_the_report_depends_on_the_seed_alone() -> None:
    """To the bit; another seed makes another cut. Any whole number is a seed."""
    latents, targets, control = normal(150, 3), normal(150, 3, 1), normal(150, 3, 2)

    def report(seed: int) -> dict[str, float]:
        return match_report(latents, targets, control, seed=seed, max_vectors=60)

    first = report(2**40)
    np.random.rand(3)
    assert report(2**40) == first
    assert report(-1) != first


def test_float32_and_views_give_what_their_copies_give() -> None:
    """The same numbers in double precision, contiguous."""
    latents, targets, control = (normal(60, 6, seed).astype(np.float32) for seed in range(3))
    sets = (latents[:, ::2], targets[:, ::2], control[:, ::2])
    copies = [x.astype(np.float64, order="C") for x in sets]
    assert match_report(*sets, seed=0) == match_report(*copies, seed=0)


def test_sets_are_not_written_to() -> None:
    """Read-only arrays will do, and hold what they held."""
    sets = [normal(60, 3, seed) for seed in range(3)]
    for vectors in sets:
        vectors.flags.writeable = False
    match_report(*sets, seed=0)


def test_blocks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares to the bit; sums to rounding. One row at a time, a few, and all."""
    a, b = grid(61, 3), normal(47, 3, 1)
    whole = coverage_of(a, b), energy_distance(a, b), sliced_wasserstein(a, b)
    for values in (1, 200, 1000):
        monkeypatch.setattr(module, "BLOCK_VALUES", values)
        assert coverage_of(a, b) == whole[0]
        assert energy_distance(a, b) == pytest.approx(whole[1], rel=1e-12)
        assert sliced_wasserstein(a, b) == pytest.approx(whole[2], rel=1e-12)


def test_no_matrix_is_larger_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many rows as fit, and every one of them once."""
    monkeypatch.setattr(module, "BLOCK_VALUES", 100)
    pieces = list(module.distance_blocks(normal(31, 2), normal(17, 2, 1)))
    assert max(distances.size for _, distances in pieces) <= 100
    assert sum(len(distances) for _, distances in pieces) == 31


# --- signs of collapse ------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 8])
def test_a_fresh_sample_shows_no_sign(dim: int) -> None:
    """Nor does one a little denser than the targets, nor one that is wider."""
    assert collapse_signs(report_of(normal(200, dim))) == []
    assert collapse_signs(report_of(normal(200, dim)), nll_gap=-0.1) == []
    assert collapse_signs(report_of(1.3 * normal(200, dim)), nll_gap=3.0) == []


def test_a_point_mass_shows_every_sign() -> None:
    """Each with its two numbers."""
    found = report_of(np.tile([2.0, 2.0, 2.0, 2.0], (200, 1)))
    assert found["recall"] == 0
    assert found["effective_rank"] == 1
    assert found["c2st_accuracy"] > 0.95
    signs = collapse_signs(found, nll_gap=-2.25)
    assert len(signs) == 5
    for sign, key, reference in (
        (signs[0], "coverage", "coverage_control"),
        (signs[1], "recall", "recall_control"),
        (signs[2], "effective_rank", "effective_rank_targets"),
    ):
        assert sign.startswith(f"{key} {found[key]:.3g} is below 0.5 of the {found[reference]:.3g}")
    assert "0, is below 0.5" in signs[3]
    assert "-2.25 nats, is below -0.5" in signs[4]


def test_latents_on_modes_show_signs_where_the_forward_distance_looks_better_than_ideal() -> None:
    """Four tight clusters where the targets have four wide ones."""
    centres = 4 * np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])[np.arange(200) % 4]
    targets, control, latents = (
        centres + width * normal(200, 2, i) for i, width in enumerate((1.0, 1.0, 0.1))
    )
    found = match_report(latents, targets, control, seed=0)
    assert found["forward_log_r5"] < found["forward_log_r5_control"]
    assert found["reverse_log_r5"] > found["reverse_log_r5_control"]
    assert [sign.split()[0] for sign in collapse_signs(found)] == ["coverage", "recall"]


QUIET = {
    "precision": 0.5,
    **{"coverage": 0.5, "coverage_control": 1.0, "recall": 0.4, "recall_control": 0.8},
    **{"effective_rank": 2.0, "effective_rank_targets": 4.0, "std_ratio_median": 0.5},
}
"""At every threshold, and below none."""


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"coverage": 0.49}, "coverage 0.49"),
        ({"recall": 0.39}, "recall 0.39"),
        ({"effective_rank": 1.99}, "effective_rank 1.99"),
        ({"std_ratio_median": 0.49}, "standard deviations"),
    ],
)
def test_every_sign_stands_for_itself(change: dict[str, float], word: str) -> None:
    """It shows below its threshold and not at it."""
    assert collapse_signs(QUIET, nll_gap=-0.5) == []
    (sign,) = collapse_signs(QUIET | change, nll_gap=-0.5)
    assert word in sign


def test_latents_that_spread_too_far_are_not_collapsed() -> None:
    """Few of them are near the targets, so they cover little; what they do not do is sit on modes."""
    centres = 4 * np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])[np.arange(400) % 4]
    targets, control = (centres + 0.3 * normal(400, 2, i) for i in range(2))
    found = match_report(4 * normal(400, 2, 3), targets, control, seed=0)
    assert found["coverage"] < 0.5 * found["coverage_control"]
    assert found["precision"] < 0.5
    assert collapse_signs(found) == []


def test_a_gap_of_the_nll_is_a_sign_by_itself() -> None:
    """Denser than the targets themselves; NaN is no answer and refused."""
    (sign,) = collapse_signs(QUIET, nll_gap=-0.51)
    assert "denser than the targets themselves" in sign
    with pytest.raises(ValueError, match="nll_gap is NaN"):
        collapse_signs(QUIET, nll_gap=math.nan)


# --- bad inputs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("compare", PAIRS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_an_error(
    compare: Callable[..., object], bad: float
) -> None:
    """In either set; it says in how many vectors."""
    vectors, spoilt = normal(40, 3), normal(40, 3, 1)
    spoilt[[3, 7], 1] = bad
    for sets in ((vectors, spoilt), (spoilt, vectors)):
        with pytest.raises(ValueError, match=r"2 of 40 vectors of .* hold NaN or infinite"):
            compare(*sets)


@pytest.mark.parametrize("compare", PAIRS)
def test_different_dims_are_an_error(compare: Callable[..., object]) -> None:
    """It says which set has which."""
    with pytest.raises(ValueError, match=r"of one dim are compared, found .* 3, .* 2"):
        compare(normal(40, 3), normal(40, 2))


@pytest.mark.parametrize("compare", PAIRS)
def test_an_empty_set_is_an_error(compare: Callable[..., object]) -> None:
    """On either side."""
    for sets in ((normal(0, 3), normal(40, 3)), (normal(40, 3), normal(0, 3))):
        with pytest.raises(ValueError, match="holds 0 vectors where at least"):
            compare(*sets)


def test_too_few_vectors_are_an_error_that_names_the_set_and_the_number() -> None:
    """One more is enough, for each."""
    few, many = normal(5, 2), normal(40, 2, 1)
    with pytest.raises(ValueError, match=r"generated holds 5 vectors where at least 6 .* lower k"):
        coverage_of(few, many)
    with pytest.raises(ValueError, match="real holds 5 vectors where at least 6"):
        coverage_of(many, few)
    coverage_of(normal(6, 2), normal(6, 2, 1))
    with pytest.raises(ValueError, match="targets holds 5 vectors where at least 6"):
        neighbour_log_distances(many, few, 6)
    neighbour_log_distances(many, few, 5)
    with pytest.raises(ValueError, match="b holds 1 vectors where at least 2"):
        energy_distance(many, normal(1, 2))
    energy_distance(normal(2, 2), normal(2, 2, 1))


@pytest.mark.parametrize("name", ["latents", "targets", "control"])
@pytest.mark.parametrize(("k", "need", "advice"), [(5, 20, "add vectors$"), (30, 31, "lower k")])
def test_the_report_says_how_many_vectors_it_needs(
    name: str, k: int, need: int, advice: str
) -> None:
    """Lowering k is advised where it would help."""
    sets = {key: normal(need, 2, i) for i, key in enumerate(("latents", "targets", "control"))}
    match_report(**sets, seed=0, k=k)
    sets[name] = sets[name][1:]
    with pytest.raises(ValueError, match=f"{name} holds {need - 1} .* least {need} .*{advice}"):
        match_report(**sets, seed=0, k=k)


def test_arguments_out_of_range_are_errors() -> None:
    """They say what was found."""
    a, b = normal(40, 2), normal(40, 2, 1)
    for call in (
        lambda: coverage_of(a, b, k=0),
        lambda: neighbour_log_distances(a, b, 0),
        lambda: match_report(a, b, b, seed=0, k=0),
    ):
        with pytest.raises(ValueError, match="k must be at least 1, found 0"):
            call()
    with pytest.raises(ValueError, match="num_projections must be at least 1, found 0"):
        sliced_wasserstein(a, b, num_projections=0)
    with pytest.raises(ValueError, match="max_vectors must be at least 20 for k = 5, found 19"):
        match_report(a, b, b, seed=0, max_vectors=19)


def test_dims_in_which_targets_do_not_vary_have_no_ratio() -> None:
    """They are left out, whatever latents do there; targets that vary in none are an error."""
    latents, targets, control = (normal(40, 3, i) for i in range(3))
    targets[:, 1] = control[:, 1] = 0.1
    found = match_report(latents, targets, control, seed=0)
    assert found["std_ratio_max"] < 2
    with pytest.raises(ValueError, match="targets are all alike"):
        match_report(latents, np.full((40, 3), 0.1), control, seed=0)
