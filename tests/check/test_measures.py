"""The figures against what is known of them."""

import numpy as np
import pytest

from flowprior.check.measures import (
    aligned,
    drawn_in,
    figures_of,
    place_figures,
    reference_of,
    scale_of,
    shift_of,
)
from flowprior.check.rank import rank_of
from flowprior.check.yardstick import Measure
from flowprior.stats.coverage import coverage_of, energy_distance

RNG = np.random.default_rng(0)
TARGETS = RNG.normal(size=(800, 3)) * [1, 2, 3] + 5
LATENTS = RNG.normal(size=(400, 3)) * [1, 2, 3] + 5


def test_outliers_are_drawn_in_and_others_left() -> None:
    vectors = RNG.normal(size=(1000, 2))
    vectors[0] = [1e6, 0]
    inside = drawn_in(vectors)
    assert np.linalg.norm(inside[0]) < 5
    assert np.isclose(inside, vectors).all(1).mean() == pytest.approx(0.99, abs=0.002)
    assert scale_of(vectors).std == pytest.approx(1, abs=0.05)


def test_drawing_in_goes_with_scale_and_place() -> None:
    moved = drawn_in(7 * LATENTS - 3)
    np.testing.assert_allclose(moved, 7 * drawn_in(LATENTS) - 3, rtol=1e-9)


def test_a_shift_is_in_standard_deviations_along_its_own_direction() -> None:
    reference = reference_of(TARGETS)
    for direction, std in (([1.0, 0, 0], 1), ([0, 1.0, 0], 2), ([0, 0, 1.0], 3)):
        moved = scale_of(TARGETS + 0.5 * std * np.array(direction))
        assert shift_of(moved, reference) == pytest.approx(0.5, rel=0.05)
    assert shift_of(scale_of(TARGETS), reference) == 0


def test_aligned_latents_have_the_targets_centre_and_spread() -> None:
    reference = reference_of(TARGETS)
    moved = scale_of(aligned(0.01 * LATENTS + 40, reference))
    assert moved.std == pytest.approx(reference.scale.std)
    np.testing.assert_allclose(moved.mean, reference.scale.mean, atol=1e-6)


def test_places_are_those_of_the_published_definitions() -> None:
    reference = reference_of(TARGETS)
    found = place_figures(LATENTS, reference)
    published = coverage_of(LATENTS, TARGETS)
    for name, value in published._asdict().items():
        assert found[name] == pytest.approx(value), name
    assert found["energy_distance"] == pytest.approx(energy_distance(LATENTS, TARGETS))
    assert found["missing"] == 0
    assert found["local_spread"] == pytest.approx(1, abs=0.1)


def test_missing_is_the_share_of_targets_with_nothing_around() -> None:
    """Three of four corners, of which one is left out."""
    corners = 10 * np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    targets = corners[np.arange(800) % 4] + RNG.normal(size=(800, 2))
    latents = corners[np.arange(300) % 3] + RNG.normal(size=(300, 2))
    assert place_figures(latents, reference_of(targets))["missing"] == pytest.approx(0.25, abs=0.01)


def test_copies_of_codes_are_covered() -> None:
    """Balls of no radius would cover nothing, not even themselves."""
    codes = RNG.normal(size=(10, 4))
    reference = reference_of(codes[RNG.integers(0, 10, 500)])
    found = place_figures(codes[RNG.integers(0, 10, 200)], reference)
    assert (found["precision"], found["recall"], found["coverage"]) == (1, 1, 1)


def test_figures_have_plain_finite_numbers() -> None:
    found = figures_of(LATENTS, reference_of(TARGETS), 0)
    assert all(type(value) is float and np.isfinite(value) for value in found.values())


@pytest.mark.parametrize("dim", [1, 4, 16])
def test_a_tilted_subspace_is_found(dim: int) -> None:
    """Every axis keeps its variance, and half of the directions are gone."""
    targets = RNG.normal(size=(2000, 32))
    basis = np.linalg.qr(RNG.normal(size=(32, 32)))[0][:, :dim]
    rank = rank_of(targets[:500] @ basis @ basis.T, targets)
    assert (rank.lost, rank.looked_at) == (32 - dim, 32)
    np.testing.assert_allclose(rank.kept @ rank.kept.T, basis @ basis.T, atol=1e-6)


def test_directions_in_which_targets_hardly_vary_do_not_count() -> None:
    targets = RNG.normal(size=(2000, 4)) * [1, 1, 1, 1e-4]
    rank = rank_of(targets[:500] * [1, 1, 1, 0], targets)
    assert (rank.lost, rank.looked_at) == (0, 3)


def test_an_interval_holds_99_in_100_more_sets() -> None:
    """By t with nine degrees of freedom: the mean of ten, and one more."""
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(4000):
        sets, one = rng.normal(size=10), rng.normal()
        low, high = Measure(0.0, float(sets.mean()), float(sets.std(ddof=1))).interval
        inside += low <= one <= high
    assert inside / 4000 == pytest.approx(0.99, abs=0.005)


@pytest.mark.parametrize("lost", [0, 3])
def test_what_is_kept_is_what_is_not_lost_however_narrow(lost: int) -> None:
    """A direction is lost by what targets have in it, not by its own size: a narrow one may be whole."""
    stds = np.array([1, 1, 1, 0.05])
    targets = RNG.normal(size=(4000, 4)) * stds
    factors = np.ones(4)
    factors[lost] = 1e-2
    rank = rank_of(targets[:1000] * factors, targets)
    assert rank.lost == 1
    np.testing.assert_allclose(rank.kept[lost], 0, atol=0.02)
