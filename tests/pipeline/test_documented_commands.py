"""Every command of README.md and docs/, page by page, as it is printed, in a clone at the smoke preset."""

import shlex
import shutil
import sys
from pathlib import Path

import pytest

from tests.documents import PAGES, RUN_ELSEWHERE, blocks, commands

from .closure import ROOT
from .workspace import environment, run

pytestmark = pytest.mark.slow

PRINTING = [block for block in blocks() if block.prints]
RUN_HERE = {
    page: [
        command
        for _, command in commands(page)
        if command not in (*RUN_ELSEWHERE, *(block.prints for block in PRINTING))
    ]
    for page in PAGES
}


def shell(command: str, cwd: Path, bin: Path) -> str:
    """Run a line in a shell; its output. `make` takes the environment that is there for the one that it sets up."""
    command = command.replace("make ", "make -o .venv/.installed ", 1)
    with_code = f"export PATH={shlex.quote(str(bin))}:$PATH PYTHONPATH=src OMP_NUM_THREADS=1\n"
    return run(["bash", "-ec", with_code + command], cwd)


@pytest.fixture
def bin(tmp_path: Path) -> Path:
    """A folder with the command `flowprior`, which runs the clone's code wherever the package is installed from."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command = folder / "flowprior"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m flowprior "$@"\n')
    command.chmod(0o755)
    return folder


@pytest.fixture
def with_results(repository: Path) -> Path:
    """The finished clone with committed figures besides the stages' own: the report and the pages are made of them."""
    for name in ("experiments", "toy", "gpu"):
        shutil.copytree(ROOT / "metrics" / name, repository / "metrics" / name, dirs_exist_ok=True)
    names = ("report.md", "bench_*.json", "own_autoencoder.json", "check_calibration.json")
    for path in (path for name in names for path in (ROOT / "metrics").glob(name)):
        shutil.copy(path, repository / "metrics")
    run(["git", "add", "-A"], repository)
    run(["git", "commit", "-qm", "figures"], repository)
    return repository


@pytest.mark.parametrize("page", [page for page in PAGES if RUN_HERE[page]])
def test_the_commands_of_a_page_run(page: str, with_results: Path, bin: Path) -> None:
    for command in RUN_HERE[page]:
        shell(command, with_results, bin)


@pytest.mark.parametrize("block", PRINTING, ids=lambda one: one.prints)
def test_what_a_page_says_that_a_command_prints_is_printed(
    block, repository: Path, bin: Path
) -> None:
    printed = [line.rstrip() for line in shell(block.prints, repository, bin).splitlines()]
    assert set(filter(None, block.body.splitlines())) <= set(printed)


def test_the_shell_that_runs_them_is_a_users(repository: Path, bin: Path) -> None:
    """With the clone's code, and not the one of this tree."""
    said = shell("python -c 'import flowprior; print(flowprior.__file__)'", repository, bin)
    assert str(repository / "src") in said
    assert environment()["FLOWPRIOR_MLFLOW"] == "off"
