"""Results of experiments that DVC has: run by hand, by its queue, or elsewhere and fetched from a git remote."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from flowprior.config.messages import ParamsError
from flowprior.core.io import ArtifactError
from flowprior.experiments.git import GitError, export, git
from flowprior.experiments.planned import Experiment
from flowprior.experiments.results import read_workspace, save

READ = ("params.yaml", "presets", "plugins", "metrics", "src")
"""What a result is read from."""


def collect(
    root: Path, wanted: Sequence[Experiment], say: Callable[[str], None] = print
) -> list[str]:
    """Save results of experiments that DVC has of this repository, run here or fetched from elsewhere.

    Only those are taken that would give the same today; costs and machines are not known of them.

    Args:
        root: The repository.
        wanted: Experiments whose results are missing.
        say: Gets a line for each that is not taken.

    Returns:
        The names of those taken.
    """
    there = dvc_experiments(root)
    taken = []
    for experiment in wanted:
        if experiment.name not in there:
            continue
        commit, baseline = there[experiment.name]
        with tempfile.TemporaryDirectory() as folder:
            try:
                export(root, commit, Path(folder), READ)
                save(root, read_workspace(Path(folder), experiment, baseline))
            except (ArtifactError, ParamsError, GitError) as error:
                say(f"{experiment.name}: not taken: {error}")
                continue
        taken.append(experiment.name)
    return taken


def dvc_experiments(root: Path) -> dict[str, tuple[str, str]]:
    """The newest DVC experiment of each name in a repository: its commit, and the commit that it started from."""
    from dvc.repo import Repo  # type: ignore[import-untyped]  # takes a second to import

    with Repo(str(root)) as repo:
        by_baseline = repo.experiments.ls(all_commits=True)
    listed = [
        (int(git(root, "show", "--no-patch", "--format=%ct", commit)), name, commit, baseline)
        for baseline, named in by_baseline.items()
        for name, commit in named
    ]
    return {name: (commit, baseline) for _, name, commit, baseline in sorted(listed)}
