"""Run the experiments of tables.yaml that have no result yet, through DVC, several at a time.

    make tables                                      # Ctrl-C stops it, the same command goes on
    make tables TABLES='--only semantic --workers 1' # rows whose experiments' names match
    make tables TABLES=--list                        # what there is, what is missing; runs nothing
    make tables TABLES=--queue                       # put what is missing into DVC's queue instead
    make tables TABLES=--collect                     # take the results of what DVC has run or pulled
    make tables TABLES='--listing mine.yaml'         # another list

Reads   tables.yaml, params.yaml, DVC's experiments
Writes  metrics/experiments/<key>.json     one for each experiment, as it ends
        .ckpt/tables/<name>.log            what it printed

An experiment runs in a temporary copy of the committed tree (`dvc exp run --temp`), so that stages
which did not change come from the run cache. One that fails stops nothing else, and is named at the end.
A result that other code made than the committed is made anew, unless --keep-older is given.
"""

from flowprior.config import params

if __name__ == "__main__":
    params.check(__name__)

import argparse
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from flowprior.config.params import ParamsError
from flowprior.core.io import ArtifactError
from flowprior.experiments.listing import (
    LISTING,
    Experiment,
    Listing,
    experiments,
    listed,
    read_listing,
)
from flowprior.experiments.results import (
    FOLDER,
    Result,
    code_of,
    dvc_experiments,
    git,
    load_all,
    older_stages,
    save,
    taken_from,
)
from flowprior.experiments.runner import Campaign, environment, num_gpus

ROOT = params.ROOT


class State(NamedTuple):
    """What there is and what is missing.

    Attributes:
        wanted: All that is listed.
        results: What there is, by key.
        code: Hashes of the stages' code at HEAD.
    """

    wanted: list[Experiment]
    results: Mapping[str, Result]
    code: Mapping[str, str]

    def older(self, one: Experiment) -> list[str]:
        """Stages of an experiment's result that older code made."""
        return older_stages(self.results[one.key], self.code) if one.key in self.results else []

    def missing(self, keep_older: bool) -> list[Experiment]:
        """What has to run."""
        return [
            one
            for one in self.wanted
            if one.key not in self.results or (self.older(one) and not keep_older)
        ]


def look(root: Path, listing: Listing, only: str = "") -> State:
    """What a listing wants and the repository has.

    Raises:
        ParamsError: The listing is wrong.
        ArtifactError: A result cannot be read.
    """
    wanted = [one for one in experiments(listed(listing)) if re.search(only, one.name)]
    return State(wanted, load_all(root), code_of(root, "HEAD"))


def collect(root: Path, state: State) -> list[Experiment]:
    """Take the results of experiments that DVC has and the repository has not; which those were."""
    here = dvc_experiments(root)
    taken = []
    for one in state.missing(keep_older=False):
        if (revision := here.get(one.name)) and code_of(root, revision) == state.code:
            try:
                save(root, taken_from(root, revision, one))
            except ArtifactError as error:
                print(f"{one.name}: not taken: {error}", file=sys.stderr)
                continue
            taken.append(one)
    return taken


def check_tree(root: Path) -> None:
    """Experiments start from what is committed, on a branch.

    Raises:
        SystemExit: Something is not committed, or HEAD is detached; says how to go on.
    """
    results = f":!{FOLDER.as_posix()}"
    changed = git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", results)
    if changed.strip():
        names = ", ".join(sorted(line[3:] for line in changed.decode().splitlines()))
        raise SystemExit(
            f"commit or stash first, experiments start from what is committed: {names}"
        )
    try:
        git(root, "symbolic-ref", "--quiet", "HEAD")
    except RuntimeError:
        raise SystemExit(
            "HEAD is detached, as a `dvc exp run` that was killed leaves it; go back with `git switch <branch>`"
        ) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 where an experiment failed."""
    parser = argparse.ArgumentParser(
        prog="campaign.py",
        description="Run the experiments of tables.yaml that have no result yet.",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="experiments at a time; 0: one for each GPU or core, at most 4",
    )
    parser.add_argument(
        "--listing", type=Path, default=LISTING, help="another list than tables.yaml"
    )
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="experiments whose name matches"
    )
    parser.add_argument(
        "--keep-older", action="store_true", help="results that older code made will do"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="say what there is and run nothing")
    what.add_argument("--queue", action="store_true", help="put what is missing into DVC's queue")
    what.add_argument(
        "--collect", action="store_true", help="take results of what DVC has, run nothing"
    )
    args = parser.parse_args(arguments)
    if args.workers < 0:
        parser.error(f"--workers must be at least 1, found {args.workers}")
    try:
        re.compile(args.only)
    except re.error as error:
        parser.error(f"--only {args.only!r}: {error}")
    try:
        listing = read_listing(args.listing)
        state = look(ROOT, listing, args.only)
        if not state.wanted:
            parser.error(f"--only {args.only!r} matches no experiment of {args.listing.name}")
        return _act(args, listing, state)
    except (ParamsError, ArtifactError) as error:
        print(error, file=sys.stderr)
        return 2


def _act(args: argparse.Namespace, listing: Listing, state: State) -> int:
    if args.list:
        for one in state.wanted:
            older = state.older(one)
            made = "missing" if one.key not in state.results else "there"
            print(
                f"{one.name:24} {one.key}  {made}{', older code: ' + ', '.join(older) if older else ''}"
            )
        return 0
    check_tree(ROOT)
    from flowprior.ops.machine import machine

    workers = args.workers or num_gpus() or min(4, os.cpu_count() or 1)
    where = machine() | {"threads": int(environment(0, workers)["OMP_NUM_THREADS"])}
    for one in (taken := collect(ROOT, state)):
        print(f"{one.name}: taken from DVC")
    if args.collect:
        print(f"{len(taken)} results taken")
        return 0
    state = look(ROOT, listing, args.only)
    todo = state.missing(args.keep_older)
    print(
        f"{len(state.wanted) - len(todo)} of {len(state.wanted)} results are there, "
        f"{len(todo)} to run, {workers} at a time"
    )
    if args.queue:
        for one in todo:
            settings = [part for setting in one.settings for part in ("-S", setting)]
            subprocess.run(
                ["dvc", "exp", "run", "--queue", "--name", one.name, *settings],
                cwd=ROOT,
                check=True,
            )
        print("`dvc queue start -j N` runs them; then `make tables TABLES=--collect`")
        return 0
    signal.signal(signal.SIGTERM, _interrupt)
    campaign = Campaign(ROOT, workers, where)
    try:
        campaign.run(todo)
    except KeyboardInterrupt:
        return 130
    if campaign.failed:
        print(f"{len(campaign.failed)} failed: {', '.join(campaign.failed)}", file=sys.stderr)
    return int(bool(campaign.failed))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
