"""Correlations against scipy, and their intervals."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray
from scipy import stats

from flowprior.stats.correlation import correlations

PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)
LEVELS = st.sampled_from([0.0, 1.0, 2.0, 3.0])
FAST = 50
"""Resamples where the interval is not looked at."""


def pairs(n: int, slope: float, seed: int = 0) -> tuple[ndarray, ndarray]:
    """Two curves, the second following the first as far as the slope is large."""
    x, noise = np.random.default_rng(seed).normal(size=(2, n))
    return x, slope * x + noise


@PROPERTY
@given(n=st.integers(4, 60), slope=st.floats(-3, 3), seed=st.integers(0, 1000))
def test_coefficients_are_those_of_scipy(n: int, slope: float, seed: int) -> None:
    """Pearson's and Spearman's, in [-1, 1]."""
    x, y = pairs(n, slope, seed)
    found = correlations(x.tolist(), y.tolist(), 0, FAST)
    assert set(found) == {"pearson", "spearman"}
    # The same sums in another order, of at most 60 terms.
    assert found["pearson"].value == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert found["spearman"].value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


@PROPERTY
@given(
    values=st.lists(st.tuples(LEVELS, LEVELS), min_size=4, max_size=20).filter(
        lambda rows: all(len(set(side)) > 1 for side in zip(*rows, strict=True))
    )
)
def test_ties_share_their_rank(values: list[tuple[float, float]]) -> None:
    """As in scipy, for curves with many equal values."""
    x, y = zip(*values, strict=True)
    found = correlations(x, y, 0, FAST)
    assert found["spearman"].value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_line_correlates_perfectly(sign: int) -> None:
    """Both coefficients and both ends of their intervals are +-1."""
    x = np.random.default_rng(0).normal(size=20)
    for found in correlations(x.tolist(), (3 + 2 * sign * x).tolist(), 0).values():
        assert found == pytest.approx((sign, sign, sign), abs=1e-12)


def test_only_the_order_matters_to_spearman() -> None:
    """A monotone map leaves it at 1, to the bit; Pearson falls."""
    x = np.linspace(0, 5, 20)
    found = correlations(x.tolist(), np.exp(x).tolist(), 0)
    assert found["spearman"] == pytest.approx((1, 1, 1), abs=1e-12)
    assert found["pearson"].value < 0.95


@PROPERTY
@given(n=st.integers(10, 60), slope=st.floats(-3, 3), seed=st.integers(0, 1000))
def test_the_interval_contains_the_value(n: int, slope: float, seed: int) -> None:
    """And is ordered, within [-1, 1] up to rounding."""
    x, y = pairs(n, slope, seed)
    for found in correlations(x.tolist(), y.tolist(), 0, 400).values():
        assert -1 - 1e-12 <= found.low <= found.value <= found.high <= 1 + 1e-12
        assert found.low < found.high


def test_the_interval_is_the_percentile_bootstrap() -> None:
    """Pearson's against scipy's own bootstrap of pairs, to the noise of 5000 resamples."""
    x, y = pairs(40, 0.7)
    found = correlations(x.tolist(), y.tolist(), 0, 5000)["pearson"]
    exact = stats.bootstrap(
        (x, y),
        lambda a, b, axis: stats.pearsonr(a, b, axis=axis).statistic,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=5000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    # A 2.5% quantile of 5000 values of spread 0.1 has a standard error of about 0.004.
    assert found.low == pytest.approx(exact.low, abs=0.02)
    assert found.high == pytest.approx(exact.high, abs=0.02)


def test_more_pairs_narrow_the_interval() -> None:
    """By the root of their number, roughly: sixteen times as many, a width of at most a half."""
    widths = []
    for n in (20, 320):
        x, y = pairs(n, 0.5)
        found = correlations(x.tolist(), y.tolist(), 0)["pearson"]
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2


def test_the_interval_depends_on_the_seed_alone() -> None:
    """Equal seeds give equal intervals to the bit; the values do not depend on it."""
    x, y = (side.tolist() for side in pairs(20, 0.5))
    one, again, other = (correlations(x, y, seed) for seed in (1, 1, 2))
    assert one == again
    assert one["pearson"].value == other["pearson"].value
    assert one["pearson"].low != other["pearson"].low


def test_a_coefficient_is_symmetric() -> None:
    """The sides may be exchanged, interval included."""
    x, y = (side.tolist() for side in pairs(20, 0.5))
    for one, two in zip(
        correlations(x, y, 0).values(), correlations(y, x, 0).values(), strict=True
    ):
        assert one == pytest.approx(two, abs=1e-12)


# --- degenerate inputs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([], []),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 4.0]),
        ([1.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]),
        ([1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 5),
    ],
    ids=["none", "three", "left", "right"],
)
def test_too_few_pairs_or_a_side_that_does_not_vary_give_nothing(
    x: list[float], y: list[float]
) -> None:
    """Nothing rather than NaN, which no JSON file takes."""
    assert correlations(x, y, 0) == {}


@pytest.mark.filterwarnings("ignore:All-NaN slice")
@pytest.mark.parametrize("constant", [[0.1] * 6, [-13.815510557964272] * 5])
def test_a_constant_whose_mean_is_rounded_does_not_vary_either(constant: list[float]) -> None:
    """Log 1e-6, the floor of mean log r_k, is a curve that can happen."""
    assert correlations(constant, [float(step) for step in range(len(constant))], 0) == {}


def test_resamples_without_variation_are_left_out() -> None:
    """Of four pairs with one odd one, a third of the resamples has no coefficient; no warning, no NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = correlations([0.0, 0.0, 0.0, 1.0], [1.0, 2.0, 3.0, 9.0], 0)
    for name in ("pearson", "spearman"):
        assert np.isfinite(found[name]).all()


def test_unequally_many_values_are_an_error() -> None:
    """It says how many there are of each."""
    with pytest.raises(ValueError, match="equally many values, found 5 and 4"):
        correlations([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0], 0)
