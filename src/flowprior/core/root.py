"""Where the repository is."""

import os
from pathlib import Path

MARKS = ("dvc.yaml", "params.yaml")


def find_root(start: Path | None = None) -> Path:
    """The nearest folder, from `start` (default: the working directory) upwards, with dvc.yaml and params.yaml.

    The working directory itself where there is none.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if all((folder / mark).is_file() for mark in MARKS):
            return folder
    return start


def state_root(root: Path) -> Path:
    """Where checkpoints and tracking live, and what relative paths to images start from.

    `FLOWPRIOR_HOME` where that is set: a worker's clone belongs to the repository there. Else the repository itself,
    also for an experiment in one of DVC's temporary copies.
    """
    return Path(os.environ.get("FLOWPRIOR_HOME") or os.environ.get("DVC_ROOT") or root)
