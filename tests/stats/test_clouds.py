"""Whatever compares two sets: in blocks, of copies, and of what cannot be compared."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from flowprior.stats import clouds as module
from flowprior.stats.coverage import (
    coverage_of,
    energy_distance,
    neighbour_log_distances,
    sliced_wasserstein,
)
from flowprior.stats.match import match_report

from .vectors import PAIRS, grid, normal


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
