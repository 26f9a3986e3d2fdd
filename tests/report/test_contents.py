"""What the report computes of results: tables, verdicts, costs."""

import re
from pathlib import Path

import pytest

from flowprior.experiments.claims import summary
from flowprior.experiments.tables_file import TablesFile
from flowprior.report import ledger
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


def test_the_ledger_counts_what_an_objective_adds(report: Report) -> None:
    """Time against the runs without one; operations by the plan."""
    objectives = {one.name: one for one in report.objectives}
    assert objectives["none"].added_time == 0
    assert objectives["none"].added_flops == 0
    assert objectives["flow_prior"].added_time == pytest.approx(0.5)
    flops = {name: one.added_flops or 0.0 for name, one in objectives.items()}
    assert flops["flow_prior"] == pytest.approx(0.62, abs=0.02)
    assert flops["dmd"] > flops["flow_prior"] > flops["kl"]


def test_the_ledger_has_all_stages_in_order(report: Report) -> None:
    stages = {one.stage: one for one in report.stages}
    assert next(iter(stages)) == "extract_features"
    assert stages["train_ae"].n == 69
    assert stages["train_ae"].seconds == 45.0
    assert stages["train_ae"].peak_mib == 1000.0
    assert stages["train_mar"].seconds is None
    assert stages["train_mar"].gflop == pytest.approx(5869, rel=0.01)


def test_without_a_store_there_are_no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is one made."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert ledger.tracked_runs(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_runs_of_a_store_are_counted_by_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of experiments alone, with the hours that they took; a store that cannot be read is none."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(uri)
    experiment = client.create_experiment("flowprior", artifact_location=tmp_path.as_uri())
    for name, status in (("a", "FINISHED"), ("b", "FAILED"), ("workspace", "FINISHED")):
        tags = {"kind": "stage", "stage": "train_ae", "experiment": name}
        run = client.create_run(experiment, start_time=1_000, tags=tags)
        client.set_terminated(run.info.run_id, status, end_time=1_801_000)
    assert ledger.tracked_runs(tmp_path) == [("train_ae", 1, 1, 1.0)]
    (tmp_path / "broken.db").write_text("no database")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'broken.db'}")
    assert ledger.tracked_runs(tmp_path) == []
