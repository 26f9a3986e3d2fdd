"""The text of a Slurm job, and what it asks of the repository; that it works is tried by `test_tables_with_dvc`."""

import subprocess
import sys
from pathlib import Path

import pytest

from flowprior.experiments.runner import ExperimentError
from flowprior.experiments.slurm import slurm_script

from .conftest import planned, run_git


@pytest.fixture
def pushed(repository: Path) -> Path:
    """A repository whose HEAD is at its remote origin."""
    run_git(repository, "clone", "-q", "--bare", ".", "../origin.git")
    run_git(repository, "remote", "add", "origin", "../origin.git")
    run_git(repository, "push", "-q", "origin", "HEAD")
    return repository


def test_a_task_runs_one_experiment(pushed: Path) -> None:
    """From a clone of origin at this commit; the shell can read it."""
    script = slurm_script(pushed, planned(pushed), ["--gpus=1", "--time=01:00:00"])
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    lines = script.splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert [line for line in lines if line.startswith("#SBATCH")] == [
        "#SBATCH --job-name=flowprior",
        "#SBATCH --array=0-5",
        f"#SBATCH --output={pushed}/.ckpt/tables/slurm-%A_%a.out",
        "#SBATCH --gpus=1",
        "#SBATCH --time=01:00:00",
    ]
    names = lines[lines.index("names=(") + 1 : lines.index(")")]
    assert [name.strip() for name in names] == [one.name for one in planned(pushed)]
    assert f"git clone --quiet {pushed.parent / 'origin.git'} " in script
    assert run_git(pushed, "rev-parse", "HEAD").strip() in script
    assert f"export PATH={Path(sys.executable).parent}:$PATH" in script
    assert 'flowprior tables --run "$name"\n' in script
    assert (pushed / ".ckpt/tables").is_dir()
    other = slurm_script(pushed, planned(pushed)[:1], tables=Path("mine.yaml"))
    assert f'--run "$name" --file {pushed}/mine.yaml\n' in other
    assert "#SBATCH --array=0-0" in other


def test_what_a_job_cannot_do_without_is_asked_for(repository: Path) -> None:
    """A remote, and that it has what is to run."""
    one = planned(repository)[:1]
    with pytest.raises(ExperimentError, match="no experiment"):
        slurm_script(repository, [])
    with pytest.raises(ExperimentError, match="git remote add origin"):
        slurm_script(repository, one)
    run_git(repository, "clone", "-q", "--bare", ".", "../origin.git")
    run_git(repository, "remote", "add", "origin", "../origin.git")
    run_git(repository, "commit", "-q", "--allow-empty", "-m", "more")
    with pytest.raises(ExperimentError, match="push it first: git push origin HEAD"):
        slurm_script(repository, one)
