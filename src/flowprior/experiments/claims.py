"""What results say of a claim: numbers, a test, a verdict.

Two groups of runs are compared by Welch's t-test, a group and a number by Student's, the rows of a
table in order by Spearman's rank correlation. All tests are two-sided, and their p-values are
adjusted for the number of claims (Holm).
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from flowprior.experiments.listing import Claim, Listing

LEVEL = 0.05
Verdict = Literal["holds", "does not hold", "undecided", "no results"]


class Summary(NamedTuple):
    """Mean and standard deviation (n - 1) over runs; the latter is NaN for one run, both for none."""

    n: int
    mean: float
    std: float


class Finding(NamedTuple):
    """What the results say of a claim.

    Attributes:
        claim: It.
        first: Of its rows; of all runs of a trend.
        second: Of what they are compared with, if that is rows.
        difference: Of means; a trend's rank correlation.
        low: End of its 95% interval; NaN for a trend.
        high: Likewise.
        p: Two-sided, not adjusted; NaN where there are too few runs.
        adjusted: By Holm, for all claims that were tested.
        verdict: Of `adjusted` at the level of 5%.
    """

    claim: Claim
    first: Summary
    second: Summary | None
    difference: float
    low: float
    high: float
    p: float
    adjusted: float
    verdict: Verdict


def summary(values: Sequence[float]) -> Summary:
    """Of some runs."""
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    return Summary(n, mean, float(np.std(values, ddof=1)) if n > 1 else math.nan)


def findings(
    listing: Listing, values: Callable[[str | None, str, str], Sequence[float]]
) -> list[Finding]:
    """What the results say of all claims, in order.

    Args:
        listing: With the claims.
        values: Of a table (None: any), row and metric, one for each run.
    """
    tested = [_test(claim, listing, values) for claim in listing.claims]
    ps = holm([one.p for one in tested])
    return [
        one._replace(adjusted=p, verdict=_verdict(one, p))
        for one, p in zip(tested, ps, strict=True)
    ]


def holm(ps: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979); NaNs are not counted."""
    order = sorted((p, at) for at, p in enumerate(ps) if not math.isnan(p))
    adjusted = [math.nan] * len(ps)
    highest = 0.0
    for rank, (p, at) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        adjusted[at] = highest
    return adjusted


def _test(
    claim: Claim, listing: Listing, values: Callable[[str | None, str, str], Sequence[float]]
) -> Finding:
    if claim.trend is not None:
        return _trend(claim, listing, values)
    first = [x for row in claim.rows for x in values(None, row, claim.metric)]
    second = [x for row in claim.against for x in values(None, row, claim.metric)]
    a, b = summary(first), summary(second) if claim.against else None
    found = Finding(claim, a, b, *[math.nan] * 5, "no results")
    against = claim.than if b is None else b.mean
    difference = a.mean - float(against if against is not None else math.nan)
    found = found._replace(difference=difference)
    enough = a.n > 1 and (b is None or b.n > 1)
    if not enough or _constant(first, second):
        return found
    test = (
        stats.ttest_1samp(first, claim.than)
        if b is None
        else stats.ttest_ind(first, second, equal_var=False)
    )
    low, high = test.confidence_interval(0.95)
    shift = claim.than if b is None else 0.0
    return found._replace(
        low=float(low) - float(shift or 0),
        high=float(high) - float(shift or 0),
        p=float(test.pvalue),
    )


def _constant(first: Sequence[float], second: Sequence[float]) -> bool:
    """Without any spread there is no test."""
    return len(set(first)) == 1 and len(set(second)) <= 1


def _trend(
    claim: Claim, listing: Listing, values: Callable[[str | None, str, str], Sequence[float]]
) -> Finding:
    places: list[int] = []
    found: list[float] = []
    for place, row in enumerate(listing.tables[str(claim.trend)].rows):
        of_row = values(claim.trend, row, claim.metric)
        places += [place] * len(of_row)
        found += of_row
    finding = Finding(claim, summary(found), None, *[math.nan] * 5, "no results")
    if len(set(places)) < 3 or len(set(found)) < 2:
        return finding
    test = stats.spearmanr(places, found)
    return finding._replace(difference=float(test.statistic), p=float(test.pvalue))


def _verdict(found: Finding, p: float) -> Verdict:
    if math.isnan(p):
        return "no results"
    if p >= LEVEL:
        return "undecided"
    if found.claim.expect == "same":
        return "does not hold"
    up = found.difference > 0
    return "holds" if up == (found.claim.expect == "higher") else "does not hold"
