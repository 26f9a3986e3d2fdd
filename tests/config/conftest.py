"""A repository with parameters and nothing else."""

from pathlib import Path

import pytest

from .committed import write_repository


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """params.yaml, presets and dvc.yaml of the last commit, as the working directory."""
    monkeypatch.chdir(write_repository(tmp_path / "repository"))
    return tmp_path / "repository"
