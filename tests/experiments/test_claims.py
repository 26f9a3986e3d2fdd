"""Claims: the tests behind their verdicts, and how p-values are adjusted."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from scipy import stats

from flowprior.config.messages import parse_as
from flowprior.experiments import claims
from flowprior.experiments.tables_file import TablesFile


def test_holm_adjusts_for_the_number_of_claims() -> None:
    """The worked example: 0.01, 0.04, 0.03, 0.005 give 0.03, 0.06, 0.06, 0.02; what was not tested is not counted."""
    adjusted = claims.holm([0.01, 0.04, math.nan, 0.03, 0.005])
    assert adjusted[:2] == pytest.approx([0.03, 0.06])
    assert math.isnan(adjusted[2])
    assert adjusted[3:] == pytest.approx([0.06, 0.02])
    assert claims.holm([0.9, 0.8]) == [1.0, 1.0]


def asked(values: Mapping[str, Sequence[float]], **claim: Any) -> claims.Finding:
    """What is found of one claim."""
    plain: dict[str, Any] = {"says": "x", "by": "y", "metric": "a.b", "expect": "lower"}
    table = {"title": "t", "rows": {row: "" for row in values}}
    tree = {
        "preset": "digits",
        "seeds": [0],
        "tables": {"t": table},
        "paper": {},
        "columns": [],
        "claims": [plain | claim],
    }
    file = parse_as(TablesFile, tree)
    (found,) = claims.findings(file, lambda table, row, metric: values[row])
    return found


def test_two_groups_are_compared_by_welch() -> None:
    a, b = [1.0, 1.2, 1.1], [3.0, 3.4, 2.9]
    found = asked({"a": a, "b": b}, rows=["a"], against=["b"])
    test = stats.ttest_ind(a, b, equal_var=False)
    assert found.p == found.adjusted == pytest.approx(test.pvalue)
    assert found.difference == pytest.approx(-2.0)
    assert found.low < -2.0 < found.high < 0
    assert found.verdict == "holds"
    assert (
        asked({"a": a, "b": b}, rows=["a"], against=["b"], expect="higher").verdict
        == "does not hold"
    )
    assert (
        asked({"a": a, "b": b}, rows=["a"], against=["b"], expect="same").verdict == "does not hold"
    )


def test_rows_of_a_claim_are_one_group() -> None:
    """All their runs."""
    found = asked({"a": [1.0, 1.1], "c": [1.2], "b": [3.0, 3.1]}, rows=["a", "c"], against=["b"])
    assert found.first.n == 3
    assert found.second is not None
    assert found.second.n == 2


def test_a_group_is_compared_with_a_number() -> None:
    found = asked({"a": [0.3, 0.31, 0.29]}, rows=["a"], than=1.0)
    assert found.p == pytest.approx(stats.ttest_1samp([0.3, 0.31, 0.29], 1.0).pvalue)
    assert found.difference == pytest.approx(-0.7)
    assert found.low < -0.7 < found.high
    assert found.verdict == "holds"


def test_a_trend_is_a_rank_correlation_over_a_table() -> None:
    values = {"a": [1.0, 1.1], "b": [2.0, 2.1], "c": [3.0, 3.2]}
    found = asked(values, trend="t", expect="higher")
    assert found.difference == pytest.approx(
        stats.spearmanr([0, 0, 1, 1, 2, 2], [1, 1.1, 2, 2.1, 3, 3.2])[0]
    )
    assert found.verdict == "holds"
    assert asked(values, trend="t", expect="lower").verdict == "does not hold"


def test_what_cannot_be_told_is_undecided() -> None:
    """Also what is expected to be the same: that cannot be shown."""
    noisy = {"a": [1.0, 9.0, 4.0], "b": [2.0, 8.0, 5.0]}
    for expect in ("lower", "higher", "same"):
        assert asked(noisy, rows=["a"], against=["b"], expect=expect).verdict == "undecided"


@pytest.mark.parametrize(
    "values",
    [{"a": [], "b": []}, {"a": [1.0], "b": [2.0, 3.0]}, {"a": [1.0, 1.0], "b": [1.0, 1.0]}],
)
def test_without_runs_or_spread_there_is_no_test(values: dict[str, Sequence[float]]) -> None:
    found = asked(values, rows=["a"], against=["b"])
    assert found.verdict == "no results"
    assert math.isnan(found.p)


def test_a_summary_has_the_sample_standard_deviation() -> None:
    assert list(claims.summary([1.0, 3.0])) == pytest.approx([2, 2.0, math.sqrt(2)])
    assert math.isnan(claims.summary([1.0]).std)
    assert math.isnan(claims.summary([]).mean)
