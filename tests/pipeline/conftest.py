"""One smoke run for all tests of the pipeline; each that changes anything has a copy of its own."""

import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from .workspace import STAGES, clone, copy_by_hand, run, stages_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A clone in which the whole pipeline has run once, through DVC; shared by all workers: not to be changed."""
    base = tmp_path_factory.getbasetemp()
    target = (base if worker_id == "master" else base.parent) / "finished"
    with FileLock(f"{target}.lock"):
        if not (target / ".done").exists():
            shutil.rmtree(target, ignore_errors=True)
            clone(target)
            assert stages_run(run(["dvc", "repro"], target)) == STAGES
            run(["git", "add", "-A"], target)
            run(["git", "commit", "-qm", "first run"], target)
            (target / ".git/info/exclude").write_text(".done\n")
            (target / ".done").touch()
    return target


@pytest.fixture
def repository(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished clone, with its cache, to do anything with."""
    return shutil.copytree(finished, tmp_path / "repository", symlinks=True)


@pytest.fixture
def by_hand(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished clone without git, DVC and checkpoints, for stages that are run by hand."""
    return copy_by_hand(finished, tmp_path / "by_hand")
