"""Checkpoints on the disk: written whole, read with suspicion, forgotten when others have finished since."""

import fcntl
import os
import shutil
import sys
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from flowprior.core.io import digest, file_digest

FINISHED_KEPT = 4


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state whole, or leave the one before it.

    Raises:
        OSError: It cannot be written.
    """
    scratch = path.with_suffix(f"{path.suffix}.tmp")
    try:
        torch.save(dict(state), scratch)
    except RuntimeError as error:  # torch's word for a disk that is full
        raise OSError(
            f"the checkpoint {scratch} cannot be written ({str(error).splitlines()[0]}); is the disk full? The "
            "one before it is kept"
        ) from error
    with scratch.open("r+b") as file:
        os.fsync(file.fileno())  # else the name may be on the disk before what it names
    os.replace(scratch, path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `write_checkpoint` wrote, onto the CPU; nothing in it is run.

    Raises:
        Exception: Whatever damaged bytes provoke.
    """
    with zipfile.ZipFile(path) as members:
        if (damaged := members.testzip()) is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def code_digest() -> str:
    """Hash of the project's code that is loaded: the running script and the modules of flowprior."""
    files = {
        name: Path(module.__file__)
        for name, module in sys.modules.items()
        if name.split(".")[0] == "flowprior" and module.__file__ is not None
    }
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if script is not None and Path(script).suffix == ".py":
        files["__main__"] = Path(script)
    return digest({name: file_digest(path) for name, path in sorted(files.items())})


def forget_finished(folder: Path) -> None:
    """Remove the stage's finished checkpoints of other keys, but for the newest few.

    Those may belong to runs that were killed before dvc.lock was written. One that a process is at
    work in stays.
    """
    finished = [
        other / "finished"
        for other in folder.parent.iterdir()
        if other != folder and (other / "finished").exists()
    ]
    with suppress(FileNotFoundError):  # another process of the same stage may be tidying up too
        finished.sort(key=lambda marker: marker.stat().st_mtime, reverse=True)
        for marker in finished[FINISHED_KEPT:]:
            with suppress(BlockingIOError), (marker.parent / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(marker.parent, ignore_errors=True)
