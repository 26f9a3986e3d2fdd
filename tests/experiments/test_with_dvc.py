"""Experiments through DVC itself, on the smoke preset: minutes."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from flowprior.config.versions import VERSIONS
from flowprior.experiments.campaign import Outcome, run_all, run_one
from flowprior.experiments.collect import collect, dvc_experiments
from flowprior.experiments.planned import Experiment
from flowprior.experiments.results import load_all
from flowprior.experiments.runner import WORKERS, tools
from flowprior.experiments.slurm import slurm_script
from flowprior.experiments.status import missing

from .conftest import copy_of_the_tree, planned, run_git, write_tables
from .test_campaign import at_work_below, clones, start, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A copy of the tree in which the tables of the tests were run once, with one row that fails."""
    root = copy_of_the_tree(tmp_path_factory.mktemp("tree"))
    write_tables(root / "tables.yaml", seeds=[1])
    run_git(root, "commit", "-qam", "tables of the tests")
    with pytest.MonkeyPatch.context() as patch:
        settle_in(root, patch)
        return root, run_all(root, planned(root), workers=2)


def settle_in(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Make a repository the working directory; without tracking, and without what a shell may have set."""
    patch.chdir(root)
    patch.setenv("FLOWPRIOR_MLFLOW", "off")
    patch.setenv("PATH", tools()["PATH"])
    for name in ("FLOWPRIOR_HOME", "DVC_ROOT", "PYTHONPATH"):
        patch.delenv(name, raising=False)


@pytest.fixture
def copied(ran: tuple[Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `ran`'s repository, for a test that changes it, as working directory."""
    root = tmp_path / "tree"
    shutil.copytree(ran[0], root, symlinks=True)
    settle_in(root, monkeypatch)
    return root


def named(root: Path, name: str) -> Experiment:
    """An experiment of a repository by its name."""
    return next(one for one in planned(root) if one.name == name)


def test_results_come_of_dvcs_runs(ran: tuple[Path, Outcome]) -> None:
    """With what the stages wrote; the one that fails is named, and git is clean but for the results."""
    root, outcome = ran
    names = ["kl-s1", "semantic-s1"]
    assert sorted(outcome.done) == sorted(load_all(root)) == names
    assert list(outcome.failed) == ["lost-s1"]
    assert ".ckpt/tables/lost-s1.log" in outcome.failed["lost-s1"]
    one = load_all(root)["kl-s1"]
    assert (one.seed, one.preset, one.versions) == (1, "smoke", VERSIONS)
    assert one.ran[-4:] == ["train_ae", "encode_latents", "train_mar", "sample_eval"]
    assert one.machine["threads"] == int(
        os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // 2))
    )
    assert one.sheets["samples"].startswith(b"\x89PNG")
    assert len(one.curves["alignment"]["alignment_loss"]) == 6
    assert one.costs["train_ae.peak_memory_mib"] > 100
    assert one.costs["train_ae.seconds"] > 0
    assert not [key for key in one.metrics if key.endswith(("seconds", "_per_second", "_mib"))]
    assert set(dvc_experiments(root)) == set(names)
    assert clones(root) == []
    assert run_git(root, "status", "--porcelain", "-uall").splitlines() == [
        f"?? metrics/experiments/{name}.json" for name in names
    ]


def test_checkpoints_are_the_repositorys(ran: tuple[Path, Outcome]) -> None:
    """So that what is stopped goes on, although its clone is gone."""
    assert {"train_flow", "train_ae", "train_mar"} <= {
        path.name for path in (ran[0] / ".ckpt").iterdir()
    }


def test_nothing_is_run_twice(copied: Path) -> None:
    """Results are there; run nevertheless, all comes from DVC's run cache, and no machine is named."""
    assert [one.name for one in missing(copied)] == ["lost-s1"]
    before = load_all(copied)["kl-s1"]
    again = run_one(copied, named(copied, "kl-s1"))
    assert again == before._replace(machine={}, ran=[], resumed={}, costs={})


def test_results_that_were_lost_are_taken_from_dvc(copied: Path) -> None:
    """Without running anything; where they ran is not known then."""
    before = load_all(copied)
    shutil.rmtree(copied / "metrics/experiments")
    assert sorted(collect(copied, missing(copied))) == ["kl-s1", "semantic-s1"]
    assert load_all(copied) == {
        name: one._replace(machine={}, ran=[], resumed={}, costs={}) for name, one in before.items()
    }


def test_a_raised_version_is_made_anew_from_there(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages before it come from the run cache."""
    path = copied / "src/flowprior/config/versions.py"
    path.write_text(path.read_text().replace('"sample_eval": 1', '"sample_eval": 2'))
    script = copied / "stages/sample_eval.py"
    script.write_text(script.read_text() + "# behaves otherwise\n")
    run_git(copied, "commit", "-qam", "another way of sampling")
    monkeypatch.setitem(VERSIONS, "sample_eval", VERSIONS["sample_eval"] + 1)
    assert [one.name for one in missing(copied, only="kl")] == ["kl-s1"]
    result = run_one(copied, named(copied, "kl-s1"))
    assert result.ran == ["sample_eval"]
    assert missing(copied, only="kl") == []


def test_what_is_stopped_goes_on_from_its_checkpoints(copied: Path) -> None:
    """Nothing is left running; a second start takes finished stages from the run cache."""
    write_tables(copied / "tables.yaml", seeds=[7])
    run_git(copied, "commit", "-qam", "another seed")
    log = copied / ".ckpt/tables/kl-s7.log"
    process = start(copied, "kl")
    try:
        wait_until(lambda: log.exists() and "stage 'train_mar'" in log.read_text(), process, 900)
    finally:
        process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=90)[0]
    assert process.returncode == 130, said
    assert at_work_below(copied / WORKERS) == []
    assert clones(copied) == []
    assert "kl-s7" not in load_all(copied)
    assert "train_ae" not in run_one(copied, named(copied, "kl-s7")).ran
    assert run_git(copied, "symbolic-ref", "HEAD").strip() == "refs/heads/main"


def test_machines_exchange_experiments_through_remotes(copied: Path, tmp_path: Path) -> None:
    """A job pushes to git's and DVC's remotes; a clone elsewhere takes the result and the samples."""
    run = {"check": True, "capture_output": True, "text": True}
    store = str(tmp_path / "store")
    subprocess.run(["dvc", "remote", "add", "-d", "store", store], cwd=copied, **run)
    write_tables(copied / "tables.yaml", seeds=[5])
    run_git(copied, "commit", "-qam", "a remote, another seed")
    run_git(tmp_path, "clone", "-q", "--bare", str(copied), "origin.git")
    run_git(copied, "remote", "add", "origin", str(tmp_path / "origin.git"))
    run_git(copied, "fetch", "-q", "origin")
    shutil.rmtree(copied / "metrics/experiments")
    todo = missing(copied, only="kl")
    assert [one.name for one in todo] == ["kl-s5"]
    job = tmp_path / "job.sh"
    job.write_text(slurm_script(copied, todo))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    env = os.environ | {
        "SCRATCH": str(scratch),
        "SLURM_ARRAY_TASK_ID": "0",
        "SLURM_JOB_ID": "7",
    }
    done = subprocess.run(["bash", str(job)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(scratch.iterdir()) == []
    assert "kl-s5" in load_all(copied)
    assert load_all(copied)["kl-s5"].machine

    run_git(tmp_path, "clone", "-q", str(tmp_path / "origin.git"), "third")
    third = tmp_path / "third"
    run_git(third, "fetch", "-q", "origin", "refs/exps/*:refs/exps/*")
    assert collect(third, missing(third, only="kl")) == ["kl-s5"]
    here = load_all(copied)["kl-s5"]
    assert load_all(third)["kl-s5"] == here._replace(machine={}, ran=[], resumed={}, costs={})
    run_git(third, "checkout", "-q", dvc_experiments(third)["kl-s5"][0])
    subprocess.run(["dvc", "pull", "-q", "sample_eval"], cwd=third, **run)
    assert (third / "data/samples/samples.npz").is_file()
