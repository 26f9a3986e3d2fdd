"""What results say of a claim: numbers, a test, a verdict.

Two groups of runs are compared by Welch's t-test, a group and a number by Student's, the rows of a table in order by
Spearman's rank correlation. All tests are two-sided, and their p-values are adjusted for the number of claims (Holm).
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from flowprior.experiments.tables_file import Claim, TablesFile

LEVEL = 0.05
"""An adjusted p-value below it decides a claim."""
Verdict = Literal["holds", "does not hold", "undecided", "no results"]
Values = Callable[[str | None, str, str], Sequence[float]]
"""The values of a metric, one for each run, given the table (None: whichever has the row), the row and the metric."""


class Summary(NamedTuple):
    """Mean and standard deviation (n - 1) over runs; the latter is NaN for one run, both are for none."""

    n: int
    mean: float
    std: float


class Finding(NamedTuple):
    """What the results say of a claim.

    Attributes:
        claim: The claim.
        first: Summary of the runs of the claim's rows, or of all runs of the table of a trend.
        second: Summary of the runs that they are compared with; None where that is a number, and for a trend.
        difference: Mean of the first less that of the second, or the number; for a trend the rank correlation.
        low: Lower end of the difference's 95% interval; NaN for a trend.
        high: Upper end of it; NaN for a trend.
        p: Two-sided p-value, not adjusted; NaN where there are too few runs.
        adjusted: The p-value adjusted by Holm for all claims that were tested.
        verdict: What `adjusted` decides at the level of 5%.
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
    """Mean and standard deviation of the values of some runs."""
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    return Summary(n, mean, float(np.std(values, ddof=1)) if n > 1 else math.nan)


def findings(tables: TablesFile, values: Values) -> list[Finding]:
    """What the results say of all claims of a tables file, in order."""
    tested = [_test(claim, tables, values) for claim in tables.claims]
    ps = holm([finding.p for finding in tested])
    return [
        finding._replace(adjusted=p, verdict=_verdict(finding, p))
        for finding, p in zip(tested, ps, strict=True)
    ]


def holm(ps: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979); NaNs are not counted and stay."""
    order = sorted((p, at) for at, p in enumerate(ps) if not math.isnan(p))
    adjusted = [math.nan] * len(ps)
    highest = 0.0
    for rank, (p, at) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        adjusted[at] = highest
    return adjusted


def _test(claim: Claim, tables: TablesFile, values: Values) -> Finding:
    if claim.trend is not None:
        return _trend(claim, tables, values)
    first = [x for row in claim.rows for x in values(None, row, claim.metric)]
    second = [x for row in claim.against for x in values(None, row, claim.metric)]
    a, b = summary(first), summary(second) if claim.against else None
    against = claim.than if b is None else b.mean
    difference = a.mean - float(against if against is not None else math.nan)
    finding = Finding(claim, a, b, difference, math.nan, math.nan, math.nan, math.nan, "no results")
    enough = a.n > 1 and (b is None or b.n > 1)
    if not enough or _constant(first, second):
        return finding
    test = (
        stats.ttest_1samp(first, claim.than)
        if b is None
        else stats.ttest_ind(first, second, equal_var=False)
    )
    low, high = test.confidence_interval(0.95)
    shift = float(claim.than or 0) if b is None else 0.0
    return finding._replace(low=float(low) - shift, high=float(high) - shift, p=float(test.pvalue))


def _constant(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether neither group has any spread, without which there is no test."""
    return len(set(first)) == 1 and len(set(second)) <= 1


def _trend(claim: Claim, tables: TablesFile, values: Values) -> Finding:
    places: list[int] = []
    of_all: list[float] = []
    for place, row in enumerate(tables.tables[str(claim.trend)].rows):
        of_row = values(claim.trend, row, claim.metric)
        places += [place] * len(of_row)
        of_all += of_row
    finding = Finding(
        claim, summary(of_all), None, math.nan, math.nan, math.nan, math.nan, math.nan, "no results"
    )
    if len(set(places)) < 3 or len(set(of_all)) < 2:
        return finding
    test = stats.spearmanr(places, of_all)
    return finding._replace(difference=float(test.statistic), p=float(test.pvalue))


def _verdict(finding: Finding, p: float) -> Verdict:
    if math.isnan(p):
        return "no results"
    if p >= LEVEL:
        return "undecided"
    if finding.claim.expect == "same":
        return "does not hold"
    up = finding.difference > 0
    return "holds" if up == (finding.claim.expect == "higher") else "does not hold"
