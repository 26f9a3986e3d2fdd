"""Does one curve track another? Correlation with a bootstrap interval."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Correlation(NamedTuple):
    """A coefficient with the 95% percentile interval of its bootstrap.

    Attributes:
        value: The coefficient in [-1, 1].
        low: 2.5% quantile.
        high: 97.5% quantile.
    """

    value: float
    low: float
    high: float


def correlations(
    x: Sequence[float], y: Sequence[float], seed: int, num_resamples: int = 2000
) -> dict[str, Correlation]:
    """Pearson's and Spearman's coefficients of paired values.

    Nothing is returned for fewer than four pairs or a side that does not vary. Pairs are resampled
    with replacement; resamples without variation are left out.

    Raises:
        ValueError: The sides are not of equal length.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"pairs need equally many values, found {len(a)} and {len(b)}")
    if len(a) < 4 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return {}
    picks = np.random.default_rng(seed).integers(len(a), size=(num_resamples, len(a)))
    found = {}
    for name, transform in (("pearson", np.asarray), ("spearman", _ranks)):
        value = float(_pearson(transform(a[None]), transform(b[None]))[0])
        resampled = _pearson(transform(a[picks]), transform(b[picks]))
        low, high = np.nanquantile(resampled, [0.025, 0.975])
        found[name] = Correlation(value, float(low), float(high))
    return found


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks along the last axis, ties averaged."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(values, axis=-1))


def _pearson(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's coefficient along the last axis; NaN where a side does not vary."""
    x = x - x.mean(-1, keepdims=True)
    y = y - y.mean(-1, keepdims=True)
    scale = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(scale > 0, (x * y).sum(-1) / scale, np.nan))
