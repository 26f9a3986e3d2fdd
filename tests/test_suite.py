"""The suite itself: started in the background, in parallel, in a tree that someone works in."""

import signal
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]


def test_what_a_test_starts_can_be_interrupted_where_the_suite_ignores_sigint() -> None:
    """Shells start background jobs with SIGINT ignored, and children inherit that; see tests/conftest.py."""
    code = (
        "import signal, subprocess, sys\n"
        "from tests.conftest import pytest_configure\n"
        "pytest_configure()\n"
        "child = 'import signal, sys; sys.exit(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)'\n"
        "sys.exit(subprocess.run([sys.executable, '-c', child]).returncode)\n"
    )

    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    done = subprocess.run([sys.executable, "-c", code], preexec_fn=ignore, check=False)
    assert done.returncode == 0


def test_all_pins_install_on_the_oldest_python_that_is_promised() -> None:
    """Debian 12 has 3.11.2: what asks for a later patch release of 3.11 would end `make` there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = project["requires-python"].removeprefix(">=") + ".0"
    refused = {}
    for pin in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        try:
            wanted = metadata(pin.partition("==")[0]).get("Requires-Python")
        except PackageNotFoundError:  # of another extra or platform
            continue
        if wanted and oldest not in SpecifierSet(wanted):
            refused[pin] = wanted
    assert not refused
