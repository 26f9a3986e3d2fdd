"""One process at a time does the same work."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowprior.training.session import hold

HOLDER = """
import fcntl, pathlib, sys
lock = pathlib.Path(sys.argv[1])
lock.parent.mkdir(parents=True, exist_ok=True)
file = lock.open("a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.truncate(0)
file.write("process 123 on elsewhere")
file.flush()
print("held", flush=True)
sys.stdin.readline()
lock.with_name("released").touch()
"""


@pytest.fixture
def holder() -> Iterator[Any]:
    """Starts another process that holds a lock until it is sent a line."""
    started = []

    def start(lock: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(lock)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_lock_is_let_go_by_a_process_that_dies(tmp_path: Path, holder: Any) -> None:
    """Killed without a chance to clean up: the next one waits for nobody."""
    process = holder(tmp_path / "lock")
    process.kill()
    process.wait()
    file = hold(tmp_path / "lock", "toy")
    assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")
    file.close()
