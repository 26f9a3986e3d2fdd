"""Two of everything at once: no run is lost, no figure lands in another's run, no database is locked."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from flowprior.experiments.collect import dvc_experiments
from flowprior.ops.tracking import EXPERIMENT

from .workspace import BIN, STAGES, clone, configure, hashes, run, stages_run

pytestmark = pytest.mark.slow

THREADS = "OMP_NUM_THREADS=1"


def begin(command: list[str], cwd: Path, **variables: str) -> subprocess.Popen[str]:
    """Start a command as a user would, tracking on, one thread for each."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("DVC_", "MLFLOW_", "FLOWPRIOR_"))
    }
    environment.pop("PYTHONPATH", None)
    environment |= {"PATH": f"{BIN}:{environment['PATH']}", "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> str:
    """Wait for it; what it said."""
    said = process.communicate(timeout=540)[0]
    assert process.returncode == 0, said[-4000:]
    assert "locked" not in said
    assert "cannot be reached" not in said
    return said


def tracked(uri: str) -> list[Any]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs: list[Any] = client.search_runs(
        [experiment.experiment_id], "tags.kind = 'stage'", max_results=500
    )
    return runs


def figures(folder: Path, stage: str) -> dict[str, float]:
    """Numbers of a stage's metrics file."""
    found = json.loads((folder / f"metrics/{stage}.json").read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if isinstance(value, int | float)}


def of_experiment(folder: Path, name: str, stage: str) -> dict[str, float]:
    """Metrics of a stage in an experiment, from DVC's commit of it."""
    revision, _ = dvc_experiments(folder)[name]
    found = json.loads(run(["git", "show", f"{revision}:metrics/{stage}.json"], folder))
    return {key: value for key, value in found.items() if isinstance(value, int | float)}


@pytest.fixture(scope="module")
def two_clones(tmp_path_factory) -> tuple[list[Path], str]:
    """`dvc repro` in two clones at once, of seed 0 and 1, with one fresh database for both."""
    folders = [clone(tmp_path_factory.mktemp(f"clone{seed}")) for seed in range(2)]
    configure(folders[1], seed=1)
    for folder in folders:
        run(["git", "commit", "-q", "--allow-empty", "-am", "seed"], folder)
    uri = f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'shared.db'}"
    running = [begin(["dvc", "repro"], folder, MLFLOW_TRACKING_URI=uri) for folder in folders]
    for process in running:
        assert stages_run(end(process)) == STAGES
    for folder in folders:
        run(["git", "add", "-A"], folder)
        run(["git", "commit", "-qm", "run"], folder)
    return folders, uri


def test_two_clones_have_all_their_runs_and_each_its_own_figures(
    two_clones: tuple[list[Path], str],
) -> None:
    folders, uri = two_clones
    runs = tracked(uri)
    assert len(runs) == 2 * len(STAGES)
    assert {found.info.status for found in runs} == {"FINISHED"}
    for seed, folder in enumerate(folders):
        own = {
            found.data.tags["stage"]: found.data
            for found in runs
            if found.data.metrics["seed"] == seed
        }
        assert sorted(own) == sorted(STAGES)
        for stage in STAGES:
            expected = figures(folder, stage)
            assert {key: own[stage].metrics[key] for key in expected} == expected, stage
            assert own[stage].params["seed"] == str(seed)


def test_an_experiment_in_a_temporary_copy_runs_beside_the_workspace(
    two_clones: tuple[list[Path], str],
) -> None:
    """The workspace retrains its autoencoder while the experiment trains another; each has its own result."""
    folder = two_clones[0][0]
    before = hashes(folder / "data/flow_prior")
    experiment = begin(
        ["dvc", "exp", "run", "--temp", "-n", "beside", "-S", "align.weight=0.5", "train_ae"],
        folder,
    )
    # While DVC makes the copy, it rewrites this params.yaml for a moment; the stage begins after that.
    before_it = set((folder / ".ckpt/train_ae").iterdir())
    deadline = time.monotonic() + 240
    while set((folder / ".ckpt/train_ae").iterdir()) == before_it:
        assert experiment.poll() is None, experiment.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    configure(folder, align__weight=0.25)
    end(begin(["dvc", "repro", "train_ae"], folder))
    end(experiment)
    assert hashes(folder / "data/flow_prior") == before
    here = figures(folder, "train_ae")
    there = of_experiment(folder, "beside", "train_ae")
    assert here["alignment"] != there["alignment"]
    runs = tracked(f"sqlite:///{folder / 'mlflow.db'}")
    weights = {
        found.data.tags["experiment"]: (found.data.params["align.weight"], found.data.metrics)
        for found in runs
    }
    assert weights["workspace"][0] == "0.25"
    assert weights["beside"][0] == "0.5"
    assert weights["beside"][1]["alignment"] == there["alignment"]
    assert weights["workspace"][1]["alignment"] == here["alignment"]
    run(["git", "checkout", "-q", "."], folder)
    run(["dvc", "checkout", "-q", "dvc.yaml"], folder)


def test_four_queued_experiments_with_two_workers_all_end_each_with_its_own_run(
    two_clones: tuple[list[Path], str],
) -> None:
    folder = two_clones[0][1]
    scales = ["1.5", "2.5", "3.0", "4.0"]
    run(["dvc", "exp", "run", "--queue", "-S", f"guidance.scale={','.join(scales)}"], folder)
    end(begin(["dvc", "queue", "start", "-j", "2"], folder))
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        status = run(["dvc", "queue", "status"], folder)
        if not any(word in status for word in ("Queued", "Running")):
            break
        time.sleep(2)
    assert status.count("Success") == 4, status
    runs = tracked(f"sqlite:///{folder / 'mlflow.db'}")
    assert {found.info.status for found in runs} == {"FINISHED"}
    assert sorted(found.data.params["guidance.scale"] for found in runs) == scales
    for found in runs:
        name = found.data.tags["experiment"]
        there = of_experiment(folder, name, "sample_eval")
        assert there["guidance_scale"] == float(found.data.params["guidance.scale"])
        assert there["fd_digits_guided"] == found.data.metrics["fd_digits_guided"]
