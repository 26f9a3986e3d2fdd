"""How the experiments of a tables file stand: which results there are, which are missing or outdated."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from flowprior.config.messages import ParamsError
from flowprior.experiments.git import GitError, git
from flowprior.experiments.planned import Experiment, entries, experiments
from flowprior.experiments.results import FOLDER, Result, load_all, outdated_stages
from flowprior.experiments.runner import ExperimentError
from flowprior.experiments.tables_file import TABLES_FILE, read_tables_file

SOURCES = ("src", "stages", "presets", "plugins")
"""Folders whose new files decide about results as well."""


class Status(NamedTuple):
    """Where an experiment stands.

    Attributes:
        experiment: The experiment.
        result: Its result; None where there is none.
        outdated: Stages whose outcome would be another today; empty without a result.
    """

    experiment: Experiment
    result: Result | None
    outdated: Sequence[str]

    @property
    def is_current(self) -> bool:
        """Whether there is a result, and none of it is outdated."""
        return self.result is not None and not self.outdated

    @property
    def line(self) -> str:
        """For a listing: the name, and how it stands."""
        state = "missing" if self.result is None else "there"
        if self.outdated:
            state = f"outdated: {', '.join(self.outdated)}"
        return f"{self.experiment.name:24} {state}"


def survey(root: Path, tables: Path | None = None, only: str = "") -> list[Status]:
    """How all experiments of a tables file stand, in order.

    Args:
        root: The repository.
        tables: A file in the format of tables.yaml; None takes the repository's.
        only: Regular expression that a name must match somewhere.

    Raises:
        ParamsError: The tables file or params.yaml is wrong, or no name matches.
        ArtifactError: A result cannot be read.
    """
    file = tables or root / TABLES_FILE
    try:
        chosen = [
            one
            for one in experiments(entries(read_tables_file(file), root))
            if re.search(only, one.name)
        ]
    except re.error as error:
        raise ParamsError(f"{only!r} is no regular expression: {error}") from None
    if not chosen:
        raise ParamsError(f"{only!r} matches no experiment of {file.name}")
    results = load_all(root)
    return [status(one, results.get(one.name)) for one in chosen]


def status(experiment: Experiment, result: Result | None) -> Status:
    """How an experiment stands, given its result."""
    return Status(experiment, result, outdated_stages(result, experiment) if result else ())


def missing(
    root: Path, tables: Path | None = None, only: str = "", keep_outdated: bool = False
) -> list[Experiment]:
    """The experiments that have to run; arguments and errors as of `survey`.

    Args:
        root: The repository.
        tables: A file in the format of tables.yaml.
        only: Regular expression.
        keep_outdated: Outdated results will do.
    """
    return [
        one.experiment
        for one in survey(root, tables, only)
        if one.result is None or (one.outdated and not keep_outdated)
    ]


def check_tree(root: Path) -> None:
    """Experiments start from what is committed, on a branch: check that this is what the user sees.

    Raises:
        ExperimentError: Something is not committed, or HEAD is detached; says how to go on.
    """
    parts = ("-z", "--porcelain", "--", ".", f":!{FOLDER.as_posix()}")
    changed = git(root, "status", "--untracked-files=no", *parts).split("\0")
    new = git(root, "status", "--untracked-files=all", "-z", "--porcelain", "--", *SOURCES).split(
        "\0"
    )
    names = sorted({line[3:] for line in [*changed, *new] if line})
    if names:
        raise ExperimentError(
            f"commit or stash first, experiments start from what is committed: {', '.join(names)}"
        )
    try:
        git(root, "symbolic-ref", "--quiet", "HEAD")
    except GitError:
        raise ExperimentError(
            "HEAD is detached, and experiments would belong to no branch; go back with `git switch <branch>`"
        ) from None
