"""The suite itself: started in the background, in parallel, in a tree that someone works in."""

import signal
import subprocess
import sys


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
