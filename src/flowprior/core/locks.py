"""Locks between processes of one repository: one at a time does a piece of work, the others wait and say for whom."""

import hashlib
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

STARTED = time.time()
"""When this process began, for who came first of two that write the same."""

_claimed: dict[Path, Any] = {}


class LeftBehindError(RuntimeError):
    """This process was left behind by a DVC that was killed, and another has taken its place since."""


def hold(path: Path, what: str) -> Any:
    """Take an exclusive lock on a file, waiting (and saying for whom) while another process has it."""
    file = _locked(path, what)
    _sign(file)
    return file


def _locked(path: Path, what: str) -> Any:
    import fcntl  # is not on every system, and a library's user takes no locks

    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        other = file.readline().strip() or "another process"
        sys.stderr.write(f"{what}: waiting for {other}, which does the same work\n")
        sys.stderr.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _sign(file: Any, *lines: str) -> None:
    file.truncate(0)
    file.write("\n".join([f"process {os.getpid()} on {socket.gethostname()}", *lines]))
    file.flush()


def claim(final: Path) -> None:
    """Under DVC, keep an output to this process until it ends: its metrics follow, and belong to it.

    A DVC that is killed alone leaves its stage running. The stage that the next DVC starts waits for
    that orphan here; an orphan that comes later leaves the output to it.

    Raises:
        LeftBehindError: A process that was started after this one has had the output.
    """
    final = final.resolve()
    if "DVC_STAGE" not in os.environ or final in _claimed:
        return
    folder = Path.cwd() / ".ckpt/outputs"  # of the workspace: experiments elsewhere do not wait
    folder.mkdir(parents=True, exist_ok=True)
    file = _locked(
        folder / f"{final.name}-{hashlib.sha256(str(final).encode()).hexdigest()[:12]}.lock",
        final.name,
    )
    file.seek(0)
    other, _, started = file.read().partition("\n")
    # What lies in the future is of a clock that was set back since.
    if started and STARTED < float(started) <= time.time():
        file.close()
        raise LeftBehindError(
            f"{final} is left to {other}, which was started later than this process {os.getpid()}: "
            "the DVC that started this one was killed"
        )
    _sign(file, repr(STARTED))
    _claimed[final] = file
