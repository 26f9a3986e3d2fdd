"""`flowprior tables`, with a script in DVC's place; what experiments do is tried in tests/experiments."""

import subprocess
from pathlib import Path

import pytest

from flowprior.experiments.results import load_all

from ..experiments.conftest import run_git, write_tables
from .conftest import invoke, mistake, output

NAMES = ["semantic-s0", "lost-s0", "kl-s0", "semantic-s1", "lost-s1", "kl-s1"]


@pytest.mark.usefixtures("repository")
def test_a_list_says_how_each_stands() -> None:
    lines = [line.split() for line in output("tables", "--list").splitlines()]
    assert lines == [[name, "missing"] for name in NAMES]
    assert output("tables", "--list", "--only", "s1$").split() == [
        *("semantic-s1", "missing"),
        *("lost-s1", "missing"),
        *("kl-s1", "missing"),
    ]


def test_one_runs_by_its_name(repository: Path, fake_dvc: Path) -> None:
    """Again, if there is a result already."""
    for _ in range(2):
        said = output("tables", "--run", "kl-s1")
        assert said == "kl-s1: done, metrics/experiments/kl-s1.json\n"
        assert list(load_all(repository)) == ["kl-s1"]
    assert (fake_dvc / "events").read_text().count("start kl-s1") == 2


def test_one_that_fails_is_a_line_and_status_1(repository: Path, fake_dvc: Path) -> None:
    (fake_dvc / "fail-kl-s1").touch()
    line = mistake("tables", "--run", "kl-s1", status=1)
    assert line == "exit status 1, see .ckpt/tables/kl-s1.log: ERROR: failed to reproduce kl-s1"


def test_all_that_is_missing_runs_and_what_failed_is_named(
    repository: Path,
    fake_dvc: Path,
) -> None:
    (fake_dvc / "fail-lost-s0").touch()
    result = invoke("tables", "--workers", "2", "--only", "s0")
    assert result.exit_code == 1
    assert result.stdout.startswith("0 of 3 results are there, 3 to run\n")
    assert result.stderr == "1 failed: lost-s0\n"
    assert sorted(load_all(repository)) == ["kl-s0", "semantic-s0"]
    (fake_dvc / "fail-lost-s0").unlink()
    said = output("tables", "--only", "s0")
    assert said.startswith("2 of 3 results are there, 1 to run\n")
    assert output("tables", "--only", "s0") == "3 of 3 results are there, 0 to run\n"


def test_what_dvc_has_is_taken_and_not_run(repository: Path, fake_dvc: Path) -> None:
    output("tables", "--run", "kl-s1")
    (repository / "metrics/experiments/kl-s1.json").unlink()
    said = output("tables", "--collect")
    assert said == "kl-s1: taken from DVC\n1 result taken\n"
    assert list(load_all(repository)) == ["kl-s1"]
    assert output("tables", "--collect") == "0 results taken\n"
    (repository / "metrics/experiments/kl-s1.json").unlink()
    assert output("tables", "--only", "kl-s1") == (
        "kl-s1: taken from DVC\n1 of 1 results are there, 0 to run\n"
    )


def test_what_is_missing_is_written_as_a_slurm_array(repository: Path) -> None:
    run_git(repository, "clone", "-q", "--bare", ".", "../origin.git")
    run_git(repository, "remote", "add", "origin", "../origin.git")
    run_git(repository, "push", "-q", "origin", "HEAD")
    job = repository.parent / "job.sh"
    said = output("tables", "--slurm", str(job), "--only", "kl", "--sbatch=--gpus=1")
    assert said == f"{job}: 2 experiments; submit it with sbatch {job}\n"
    script = job.read_text()
    assert "#SBATCH --array=0-1\n" in script
    assert "#SBATCH --gpus=1\n" in script
    subprocess.run(["bash", "-n", str(job)], check=True)
    assert output("tables", "--slurm", "-", "--only", "kl", "--sbatch=--gpus=1") == script


def test_another_list_can_be_given(repository: Path) -> None:
    mine = {"mine": {"title": "Mine", "rows": {"low": "prior.source=low_level"}}}
    path = write_tables(repository.parent / "mine.yaml", tables=mine)
    said = output("tables", "--list", "--file", str(path))
    assert [line.split()[0] for line in said.splitlines()] == ["low-s0", "low-s1"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--list", "--run", "kl-s0"], "--list and --run do not go together"),
        (["--collect", "--slurm", "x"], "--collect and --slurm do not go together"),
        (["--sbatch", "--gpus=1"], "--sbatch has no effect without --slurm"),
        (["--run", "kl-s7"], "--run 'kl-s7': there is no such experiment; did you mean 'kl-s"),
        (["--run", "xyz"], "see flowprior tables --list"),
        (["--only", "("], "'(' is no regular expression"),
        (["--list", "--only", "xyz"], "'xyz' matches no experiment of tables.yaml"),
        (["--workers", "-1"], "'-1' is not a whole number of at least 0"),
        (["--list", "--file", "no.yaml"], "no.yaml does not exist"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
@pytest.mark.usefixtures("repository")
def test_a_mistake_is_a_line(arguments: list[str], said: str) -> None:
    assert said in mistake("tables", *arguments)


def test_what_is_not_committed_is_told_before_anything_runs(repository: Path) -> None:
    (repository / "params.yaml").write_text((repository / "params.yaml").read_text() + "\n")
    for arguments in (["--run", "kl-s0"], ["--only", "kl"], ["--slurm", "-"]):
        assert "commit or stash first" in mistake("tables", *arguments, status=1)
