"""The straight path, and times that are stratified over a batch yet uniform for each of its members."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flowprior.core import rng
from flowprior.flow.path import (
    conditional_velocity,
    group_vectors,
    interpolate,
    stratified_times,
)

LIKE = torch.zeros(1, dtype=torch.float64)
EXACT = settings(deadline=None, derandomize=True, max_examples=50)


def normal(*shape: int, tag: str = "x") -> torch.Tensor:
    """Fixed standard normal numbers, float64."""
    return rng.normal(shape, LIKE, rng.generator(0, tag))


def test_the_path_starts_at_the_noise_and_ends_at_the_data() -> None:
    """T = 0 is noise and t = 1 is data, exactly."""
    noise, data = normal(5, 3, tag="noise"), normal(5, 3, tag="data")
    assert torch.equal(interpolate(noise, data, torch.zeros(5).double()), noise)
    assert torch.equal(interpolate(noise, data, torch.ones(5).double()), data)


def test_half_way_is_the_mean() -> None:
    """The path is straight and has constant speed."""
    noise, data = normal(5, 3, tag="noise"), normal(5, 3, tag="data")
    middle = interpolate(noise, data, torch.full((5,), 0.5).double())
    assert torch.equal(middle, (noise + data) / 2)


@EXACT
@given(t=st.floats(0, 1), step=st.floats(1e-3, 1))
def test_the_conditional_velocity_is_the_slope_of_the_path(t: float, step: float) -> None:
    """x_(t+h) - x_t = h (data - noise) for any t and h, because the path is straight."""
    noise, data = normal(4, 3, tag="noise"), normal(4, 3, tag="data")
    before = interpolate(noise, data, torch.full((4,), t, dtype=torch.float64))
    after = interpolate(noise, data, torch.full((4,), t + step, dtype=torch.float64))
    slope = (after - before) / step
    # Rounding of numbers of size ~3, divided by a step of at least 1e-3.
    torch.testing.assert_close(slope, conditional_velocity(noise, data), rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", [(4, 1), (1, 5), (1, 1), (5,), (1,), ()])
def test_times_broadcast_over_vectors(shape: tuple[int, ...]) -> None:
    """A time of fewer or of single axes means the same time for all vectors along them."""
    noise, data = normal(4, 5, 3, tag="noise"), normal(4, 5, 3, tag="data")
    t = rng.uniform(shape, LIKE, rng.generator(0, "t"))
    expected = interpolate(noise, data, t.expand(4, 5))
    assert torch.equal(interpolate(noise, data, t), expected)


@EXACT
@given(groups=st.integers(1, 100), seed=st.integers(0, 1000))
def test_each_stratum_has_one_time(groups: int, seed: int) -> None:
    """Sorted, the i-th time lies in [i / g, (i + 1) / g]."""
    t = stratified_times(groups, LIKE, rng.generator(seed))
    assert t.shape == (groups, 1)
    assert t.dtype == torch.float64
    stratum = torch.arange(groups, dtype=torch.float64)
    within = t.squeeze(-1).sort().values * groups - stratum
    # Dividing by g and multiplying again may round a time across the edge of its stratum.
    assert within.min() >= -1e-12
    assert within.max() <= 1 + 1e-12


def test_the_time_of_any_one_group_is_uniform() -> None:
    """The strata are dealt at random, so no group knows its stratum: Kolmogorov-Smirnov and two moments."""
    generator = rng.generator(0, "marginal")
    draws = torch.stack([stratified_times(5, LIKE, generator).squeeze(-1) for _ in range(4000)])
    for group in range(5):
        times = draws[:, group].numpy()
        # Fixed generator; a right answer falls below this p-value for one seed in a thousand.
        assert stats.kstest(times, "uniform").pvalue > 1e-3
        # Five standard errors of n = 4000: sqrt(1 / 12n) and sqrt(1 / 180n).
        assert times.mean() == pytest.approx(1 / 2, abs=0.023)
        assert times.var() == pytest.approx(1 / 12, abs=0.006)


def test_the_mean_of_stratified_times_hardly_varies() -> None:
    """Its variance is 1 / (12 g^3), where g independent times have 1 / (12 g)."""
    generator = rng.generator(0, "variance")
    means = torch.stack([stratified_times(8, LIKE, generator).mean() for _ in range(4000)])
    # The relative standard error of a variance of 4000 draws is at most sqrt(2 / 4000) = 2.2%.
    assert means.var().item() == pytest.approx(1 / (12 * 8**3), rel=0.11)


def test_times_take_dtype_from_their_model_and_draws_from_the_generator() -> None:
    """float32 in, float32 out; equal generators, equal times; without one, torch's global stream."""
    like = torch.zeros(1)
    t = stratified_times(4, like, rng.generator(3))
    assert t.dtype == torch.float32
    assert torch.equal(t, stratified_times(4, like, rng.generator(3)))
    assert not torch.equal(t, stratified_times(4, like, rng.generator(4)))
    with rng.scoped(0):
        first = stratified_times(4, like)
    with rng.scoped(0):
        assert torch.equal(first, stratified_times(4, like))


@EXACT
@given(n=st.integers(1, 60), groups=st.integers(1, 70), d=st.integers(1, 4))
def test_groups_hold_the_vectors_in_order_and_zeros_behind(n: int, groups: int, d: int) -> None:
    """Flattened and cut to n they are the vectors; no more groups than asked for, none of padding alone."""
    vectors = normal(n, d)
    grouped = group_vectors(vectors, groups)
    flat = grouped.flatten(0, 1)
    assert torch.equal(flat[:n], vectors)
    assert not flat[n:].any()
    assert len(grouped) <= groups
    assert len(flat) - n < grouped.shape[1]


def test_as_many_groups_as_vectors_means_one_each() -> None:
    """No padding and a time for every vector, also when more groups are allowed."""
    assert group_vectors(normal(7, 2), 7).shape == (7, 1, 2)
    assert group_vectors(normal(7, 2), 64).shape == (7, 1, 2)
