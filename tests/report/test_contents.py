"""What the report computes of results: tables and verdicts."""

import re

import pytest

from flowprior.experiments.claims import summary
from flowprior.experiments.tables_file import TablesFile
from flowprior.report.contents import Report, plus_minus, worse

from .conftest import LOST, OUTDATED


@pytest.mark.parametrize(
    ("better", "order"),
    [("higher", [3.0, 1.0, -2.0]), ("lower", [-2.0, 1.0, 3.0]), ("zero", [1.0, -2.0, 3.0]), ("one", [1.0, 3.0, -2.0])],
)  # fmt: skip
def test_better_is_higher_lower_or_nearer(better: str, order: list[float]) -> None:
    assert sorted([1.0, -2.0, 3.0], key=lambda value: worse(value, better)) == order


def test_tables_have_means_marks_and_the_papers_figures(report: Report, file: TablesFile) -> None:
    priors = report.tables[0]
    rows = dict(priors.rows)
    assert "kl †" in rows
    assert list(rows)[-1] == "real training images"
    column = priors.head.index("FD")
    assert re.fullmatch(r"\d+\.\d ± \d\.\d", rows["ae"][column].text)
    assert [name for name, cells in priors.rows if cells[column].best] == ["semantic"]
    assert priors.paper["semantic"][0] == "1.26"
    assert "FID" not in priors.head
    operators = dict(report.tables[list(file.tables).index("operators")].rows)
    assert {cell.text for cell in operators[LOST]} == {plus_minus(summary([]), 1)}
    assert report.missing == [f"{LOST}-s{seed}" for seed in file.seeds]
    assert report.outdated == [OUTDATED]
    assert report.num_results == 69


def test_verdicts_follow_the_results(report: Report) -> None:
    """Semantic is far better, and the textual ones are not as good as it."""
    verdicts = {one.claim.says: one.verdict for one in report.findings}
    assert verdicts["A semantic prior generates better than KL"] == "holds"
    assert verdicts["Textual features do as well as semantic ones"] == "does not hold"
    assert verdicts["A random projection generates better than PCA"] == "no results"
    assert verdicts["The harder the pull, the better the generation"] == "undecided"


def test_real_images_are_judged_as_samples_are(report: Report) -> None:
    """The classifier knows nearly all of them, and they lie near the held-out ones."""
    assert report.real["sample_eval.label_agreement"] > 0.98
    assert 0 < report.real["sample_eval.fd_digits"] < 10
