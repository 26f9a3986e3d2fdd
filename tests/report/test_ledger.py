"""What the experiments cost: stages, objectives, MLflow's runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flowprior.config.schema import STAGES
from flowprior.experiments.planned import params_with
from flowprior.report import ledger

from .conftest import Results


def test_the_ledger_counts_what_an_objective_adds(
    root: Path, made_up: Callable[..., Results]
) -> None:
    """Time against the runs without one; operations by the plan. Runs that took the stage from a cache say nothing."""
    rows = ("ae", "semantic", "kl_plain", "dmd", "sliced_w2")
    results = {name: one for name, one in made_up().items() if name.rsplit("-s", 1)[0] in rows}
    results["sliced_w2-s0"] = results["sliced_w2-s0"]._replace(costs={}, ran=[])
    objectives = {one.name: one for one in ledger.objective_costs(root, list(results.values()))}
    assert {name: one.n for name, one in objectives.items()} == {
        "none": 3,
        "flow_prior": 3,
        "kl": 3,
        "dmd": 3,
        "sliced_w2": 2,
    }
    assert objectives["none"].added_time == 0
    assert objectives["none"].added_flops == 0
    assert objectives["flow_prior"].added_time == pytest.approx(0.5)
    flops = {name: one.added_flops or 0.0 for name, one in objectives.items()}
    assert flops["flow_prior"] == pytest.approx(0.62, abs=0.02)
    assert flops["dmd"] > flops["flow_prior"] > flops["kl"]


def test_the_ledger_has_all_stages_in_order(root: Path, made_up: Callable[..., Results]) -> None:
    params = params_with(["preset=digits"], root)
    stages = {one.stage: one for one in ledger.stage_costs(params, list(made_up().values()))}
    assert list(stages) == list(STAGES)
    assert stages["train_ae"].n == 72
    assert stages["train_ae"][2:5] == (45.0, 30.0, 45.0)
    assert stages["train_ae"].peak_mib == 1000.0
    assert stages["train_ae"].peak_gpu_mib is None
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
