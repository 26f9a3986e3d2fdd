"""Runs a script on a GPU that no other has: for DVC's queue with several workers on one machine.

    LAUNCH="python -m flowprior.experiments.one_gpu" dvc queue start -j 4

Waits for the first GPU where all are taken; without GPUs it is plain python.
"""

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO


def main() -> None:
    """Take a GPU, and become python with the arguments that are left; the GPU's lock is kept until that ends."""
    gpus = visible_gpus()
    if gpus:
        gpu, lock = take(gpus)
        os.set_inheritable(lock.fileno(), True)
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])


def take(gpus: Sequence[str]) -> tuple[str, IO[str]]:
    """A GPU that is free, or the first as soon as it is; with the locked file that says so to others."""
    folder = Path(tempfile.gettempdir())
    files = [(folder / f"flowprior-gpu-{gpu}.lock").open("a") for gpu in gpus]
    for gpu, file in zip(gpus, files, strict=True):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        return gpu, file
    fcntl.flock(files[0], fcntl.LOCK_EX)
    return gpus[0], files[0]


def visible_gpus() -> list[str]:
    """The GPUs of CUDA_VISIBLE_DEVICES, or all that the driver's command lists (torch would take seconds to ask)."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    try:
        done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, check=False)
    except FileNotFoundError:
        return []
    count = len(done.stdout.splitlines()) if done.returncode == 0 else 0
    return [str(number) for number in range(count)]


if __name__ == "__main__":
    main()
