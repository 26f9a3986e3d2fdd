"""A project to run commands in, and what runs them."""

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flowprior.cli.app import app

from ..costs.project import write_project
from ..experiments.conftest import fake_dvc, repository  # noqa: F401


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the committed parameters, as working directory."""
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.chdir(write_project(root))
    return root


def invoke(*arguments: str) -> Any:
    """Run `flowprior` with arguments, in this process."""
    return CliRunner().invoke(app, list(arguments))


def output(*arguments: str) -> str:
    """What a command prints that ends well."""
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def mistake(*arguments: str, status: int = 2) -> str:
    """The one line that a command says on stderr that ends with a status, and nothing else."""
    result = invoke(*arguments)
    assert result.exit_code == status, result.output
    assert not result.stdout
    (line,) = result.stderr.splitlines()
    assert re.match("flowprior: .", line)
    return line.removeprefix("flowprior: ")
