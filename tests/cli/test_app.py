"""The command as a whole: it answers without torch, and a mistake is a line on stderr."""

import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from flowprior.cli import config
from flowprior.cli.app import main

from ..pipeline.closure import ROOT
from .conftest import invoke, mistake, output

COMMANDS = (
    "config",
    "plan",
    "preflight",
    "sample",
    "tables",
    "report",
    "sync",
    "prior",
    "export",
    "images",
)
OF_GROUPS = (
    "prior fit",
    "prior check",
    "prior nll",
    "prior sample",
    "export latents",
    "images import",
    "images show",
)
HEAVY = ("torch", "numpy", "PIL", "pandas", "matplotlib", "mlflow", "dvc", "accelerate")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["config"],
        ["sample", "--help"],
        ["plan", "--gpus", "0"],
        ["prior", "fit", "--help"],
    ],
    ids=" ".join,
)
def test_no_torch_is_imported_before_there_is_work_for_it(
    arguments: list[str], project: Path
) -> None:
    """Neither for help, nor for parameters, nor for a mistake."""
    code = (
        "import sys\nfrom flowprior.cli.app import main\n"
        f"try: main({arguments})\n"
        "except SystemExit: pass\n"
        f"assert not set({HEAVY}) & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_package_is_a_command() -> None:
    command = [sys.executable, "-m", "flowprior", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    listed = re.findall(r"^  (\w+)  +\S.*\.$", done.stdout, re.MULTILINE)
    assert tuple(listed) == COMMANDS  # each with a sentence that is not cut
    assert done.stdout.startswith("Usage: flowprior ")


def test_the_installed_command_is_the_same() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["flowprior"].partition(":")
    assert getattr(import_module(module), name) is main


@pytest.mark.parametrize("command", [*COMMANDS, *OF_GROUPS])
def test_every_option_is_explained(command: str) -> None:
    options = output(*command.split(), "--help").split("Options:\n")[1]
    for option in re.findall(r"^  (?:-\w, )?--.*(?:\n {6,}.*)*", options, re.MULTILINE):
        assert re.search(r"\S  +\S|\n +\S", option.strip()), option


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing command."),
        (["smaple"], "No such command 'smaple'"),
        (["config", "--sett", "x"], "No such option: --sett"),
        (["config", "much"], "much"),
        (["plan", "--gpus"], "--gpus"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_a_mistake_in_the_command_line_is_a_line(arguments: list[str], said: str) -> None:
    assert said in mistake(*arguments)


def test_a_mistake_shows_no_traceback_in_a_terminal_either(project: Path) -> None:
    command = [sys.executable, "-m", "flowprior", "config", "--set", "train_ae.widht=3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("flowprior: the parameters cannot be used: train_ae.widht: unknown key")


def test_ctrl_c_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(config, "find_root", interrupt)
    result = invoke("config")
    assert result.exit_code == 130
    assert "Traceback" not in result.output


def test_it_can_be_called_from_python(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It returns where all is well, and raises its status where not."""
    main(["config", "--stage", "project"])
    assert "operator:" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["config", "--stage", "projct"])
    assert stop.value.code == 2
