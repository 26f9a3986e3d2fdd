"""Moments in pieces are moments of the whole."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowprior.core import rng
from flowprior.stats.moments import Moments, moments_metrics

LIKE = torch.zeros(1, dtype=torch.float64)
PROPERTY = settings(deadline=None, derandomize=True, max_examples=50)


def normal(*shape: int) -> Tensor:
    """Fixed standard normal numbers, float64."""
    return rng.normal(shape, LIKE, rng.generator(0, "x"))


def moments_of(*pieces: Tensor) -> Moments:
    """Moments of pieces, taken in one after another."""
    moments = Moments(pieces[0].shape[-1])
    for piece in pieces:
        moments.update(piece)
    return moments


@PROPERTY
@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=6), dim=st.integers(1, 5))
def test_pieces_of_any_size_give_the_moments_of_numpy(sizes: list[int], dim: int) -> None:
    """Count, mean and covariance (over n), empty pieces and pieces of one included."""
    sizes = [*sizes, 1]
    vectors = 3 * normal(sum(sizes), dim) + 2
    moments = moments_of(*vectors.split(sizes))
    assert moments.count == len(vectors)
    assert moments.dim == dim
    np.testing.assert_allclose(moments.mean, vectors.numpy().mean(0), rtol=1e-12)
    expected = np.cov(vectors.numpy().T, bias=True).reshape(dim, dim)
    # Sums of at most 121 products of numbers of order ten.
    np.testing.assert_allclose(moments.covariance, expected, rtol=1e-12, atol=1e-12)
    assert moments.std == pytest.approx(math.sqrt(np.trace(expected) / dim), rel=1e-12)


@pytest.mark.parametrize("offset", [1e4, 1e7])
def test_a_large_common_mean_does_not_eat_the_digits_of_the_variance(offset: float) -> None:
    """The covariance of x + c is that of x to what x + c itself retains, where E x^2 - (E x)^2 would lose all."""
    vectors = normal(300, 3)
    pieces = (vectors + offset).split(37)
    # Adding the offset rounds x by offset * 2^-53, and the means of the pieces likewise.
    torch.testing.assert_close(
        moments_of(*pieces).covariance, moments_of(vectors).covariance, rtol=0, atol=1e-14 * offset
    )


def test_float32_vectors_are_summed_in_float64() -> None:
    """The result is that of the same numbers in double precision."""
    vectors = (normal(300, 3) + 1000).float()
    assert torch.equal(moments_of(vectors).covariance, moments_of(vectors.double()).covariance)
    assert moments_of(vectors).mean.dtype == torch.float64


def test_the_order_of_pieces_does_not_matter() -> None:
    """Up to rounding."""
    one, two = normal(20, 3), 5 + normal(7, 3)
    forth, back = moments_of(one, two), moments_of(two, one)
    torch.testing.assert_close(forth.mean, back.mean)
    torch.testing.assert_close(forth.covariance, back.covariance)


@pytest.mark.parametrize("dim", [1, 4])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_effective_rank_of_an_isotropic_cloud_is_its_dim(dim: int, scale: float) -> None:
    """For the corners of a cross, whose covariance is exactly a multiple of I, at any scale."""
    corners = scale * torch.cat([torch.eye(dim), -torch.eye(dim)]).double()
    assert moments_of(corners).effective_rank == pytest.approx(dim, rel=1e-12)


def test_the_effective_rank_of_a_line_is_one() -> None:
    """However many channels it runs through."""
    line = torch.outer(normal(50), normal(6))
    # The five eigenvalues that should be zero are 1e-16 of the first.
    assert moments_of(line).effective_rank == pytest.approx(1, abs=1e-12)


@PROPERTY
@given(variances=st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_the_effective_rank_is_the_exponential_of_the_entropy_of_the_spectrum(
    variances: list[float],
) -> None:
    """For a cross with arms of any length; it lies between 1 and D."""
    arms = torch.diag(torch.tensor(variances, dtype=torch.float64).sqrt())
    shares = np.array(variances) / sum(variances)
    found = moments_of(torch.cat([arms, -arms])).effective_rank
    assert found == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-10)
    assert 1 - 1e-12 <= found <= len(variances) + 1e-12


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_an_error_and_change_nothing(bad: float) -> None:
    """The piece is refused as a whole."""
    moments = moments_of(normal(10, 3))
    before = (moments.count, moments.mean.clone(), moments.covariance.clone())
    piece = normal(5, 3)
    piece[3, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        moments.update(piece)
    assert moments.count == before[0]
    assert torch.equal(moments.mean, before[1])
    assert torch.equal(moments.covariance, before[2])


def test_one_vector_has_no_spread() -> None:
    """Its covariance is zero, and so is that of nothing."""
    assert moments_of(normal(1, 3)).std == 0
    assert Moments(3).std == 0


def test_the_metrics_of_moments_are_overall_and_extreme_spread_and_the_norm_of_the_mean() -> None:
    """For dims with stds 1, 2 and 3 about (3, 4, 0)."""
    moments = Moments(3)
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)))
    moments.update(corners * torch.tensor([1.0, 2.0, 3.0]) + torch.tensor([3.0, 4.0, 0.0]))
    assert moments_metrics(moments) == pytest.approx(
        {"std": (14 / 3) ** 0.5, "std_min": 1.0, "std_max": 3.0, "mean_norm": 5.0}
    )
