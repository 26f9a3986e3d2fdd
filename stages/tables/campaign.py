"""Run the experiments of tables.yaml that have no result yet, through DVC, several at a time.

    make tables                                      # Ctrl-C stops it, the same command goes on
    make tables TABLES='--only semantic --workers 1' # rows whose experiments' names match
    make tables TABLES=--list                        # what there is, what is missing; runs nothing
    make tables TABLES=--queue                       # put what is missing into DVC's queue instead
    make tables TABLES=--collect                     # take the results of what DVC has run or pulled
    make tables TABLES='--listing mine.yaml'         # another list

Reads   stages/tables/tables.yaml, params.yaml, DVC's experiments
Writes  metrics/experiments/<key>.json     one for each experiment, as it ends
        .ckpt/tables/<name>.log            what it printed

An experiment runs in a temporary copy of the committed tree (`dvc exp run --temp`), so that stages
which did not change come from the run cache. One that fails stops nothing else, and is named at the end.
A result that other code made than the committed is made anew, unless --keep-older is given.
"""

import params

if __name__ == "__main__":
    params.check(__name__)

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, Queue
from typing import Any, NamedTuple

from flowprior.io import ArtifactError
from listing import LISTING, Experiment, Listing, experiments, listed, read_listing
from params import ParamsError
from results import (
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

ROOT = params.ROOT
LOGS = Path(".ckpt/tables")
STARTED = "'extract_features'"
"""DVC names the first stage when its copy of the tree is made, and another experiment may start."""
PATIENCE = 120
"""Seconds that an experiment may take to come so far."""
ENDING = "'sample_eval'"
"""A DVC that is about to leave also runs what another has just put into the repository's queue. That is made rare:
none starts while another has come to this stage, near the end."""
BEGINS = re.compile(r"^Reproducing experiment '", re.MULTILINE)
"""How DVC says which experiment it turns to."""
BUSY = re.compile(r"Unable to acquire|[Ll]ock(Error|ed)|is busy")
"""How DVC says that another DVC is at work in the repository."""
TRIES = 5
RAN = re.compile(r"^Running stage '(\w+)':", re.MULTILINE)


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


class Running(NamedTuple):
    """An attempt at an experiment: the DVC at work on it, its log, and where in the log it begins."""

    process: subprocess.Popen[bytes]
    log: Path
    start: int

    def said(self) -> str:
        """What it has printed so far."""
        return self.log.read_bytes()[self.start :].decode(errors="replace")

    def said_of_its_own(self) -> str:
        """Without what it printed of experiments that it took from others at its end."""
        text = self.said()
        begins = [found.start() for found in BEGINS.finditer(text)]
        return text[: begins[1]] if len(begins) > 1 else text

    def wait_for_start(self) -> None:
        """Until another may start, or this one has ended or takes too long."""
        until = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < until:
            if STARTED in self.said():
                return
            time.sleep(0.2)

    @property
    def leaves(self) -> bool:
        """Whether it is near its end."""
        return self.process.poll() is None and ENDING in self.said()


class Campaign:
    """Runs experiments, several at a time, each a DVC of its own.

    Args:
        root: The repository.
        workers: Experiments at a time.
        machine: What they run on, for the results.
    """

    def __init__(self, root: Path, workers: int, machine: Mapping[str, Any]) -> None:
        self.root = root
        self.workers = workers
        self.machine = machine
        self.failed: list[str] = []
        self.done = 0
        self._starting = threading.RLock()
        self._stop = threading.Event()
        self._running: dict[str, Running] = {}

    def run(self, todo: Sequence[Experiment]) -> None:
        """Run all; returns when they have ended, or were stopped."""
        waiting: Queue[Experiment] = Queue()
        for one in todo:
            waiting.put(one)
        self._total = len(todo)
        threads = [
            threading.Thread(target=self._work, args=(waiting, number))
            for number in range(self.workers)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.5)
        except KeyboardInterrupt:
            print("stopping: the experiments that run go on from their checkpoints next time")
            self._stop.set()
            for one in list(self._running.values()):
                _kill(one.process)
            for thread in threads:
                thread.join()
            raise

    def _work(self, waiting: "Queue[Experiment]", number: int) -> None:
        while not self._stop.is_set():
            try:
                one = waiting.get_nowait()
            except Empty:
                return
            began = time.monotonic()
            try:
                said = self._run(one, number)
            except Exception as error:  # whatever it is, the others go on
                said = f"{type(error).__name__}: {error}"
            if self._stop.is_set():
                return
            took = f"{(time.monotonic() - began) / 60:.1f} min"
            if said:
                self.failed.append(one.name)
                print(f"{one.name}: FAILED after {took}: {said}", flush=True)
            else:
                self.done += 1
                print(f"{one.name}: {took}, {self.done} of {self._total}", flush=True)

    def _run(self, one: Experiment, number: int) -> str:
        """Run one and keep its result; what went wrong, if anything."""
        log = self.root / LOGS / f"{one.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(TRIES):
            running = self._start(one, number, log, again=attempt > 0)
            if running is None:
                return "stopped" if self._stop.is_set() else ""
            status = running.process.wait()
            del self._running[one.name]
            if self._keep(one, RAN.findall(running.said_of_its_own())):
                return ""
            text = running.said()
            lost = status == 0  # out of DVC's queue, to another DVC
            last_try = attempt == TRIES - 1
            if self._stop.is_set() or last_try or not (lost or BUSY.search(text)):
                break
            time.sleep(2 + 3 * attempt)
        last = [line for line in text.splitlines() if line.strip()][-1:] or ["no output"]
        said = "no experiment of DVC came of it" if lost else last[0][:300]
        return f"exit {status}, see {LOGS / log.name}: {said}"

    def _start(self, one: Experiment, number: int, log: Path, again: bool) -> Running | None:
        """Begin an attempt, or None where that is not wanted: all is stopped, or another DVC has made it meanwhile."""
        with self._starting:
            self._wait_for_those_that_leave()
            if self._stop.is_set() or (again and self._keep(one)):
                return None
            if one.name in dvc_experiments(self.root):
                self._dvc("exp", "remove", one.name)
            command = ["dvc", "exp", "run", "--temp", "--name", one.name]
            command += [part for setting in one.settings for part in ("-S", setting)]
            before = log.stat().st_size if again else 0
            with log.open("ab" if again else "wb") as file:
                process = subprocess.Popen(
                    command,
                    cwd=self.root,
                    env=environment(number, self.workers),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            running = self._running[one.name] = Running(process, log, before)
            if self._stop.is_set():
                _kill(process)
            running.wait_for_start()
            return running

    def _keep(self, one: Experiment, ran: Sequence[str] = ()) -> bool:
        """Keep the result of what DVC has made of an experiment, if anything, by the stages that ran for it here."""
        revision = dvc_experiments(self.root).get(one.name)
        if revision is None:
            return False
        stages = [stage for stage in params.SCIENCE if stage in ran]
        result = taken_from(self.root, revision, one, self.machine, stages)
        with self._starting:  # a DVC that starts resets what git has of the tree
            save(self.root, result)
        return True

    def _wait_for_those_that_leave(self) -> None:
        while not self._stop.is_set() and any(one.leaves for one in list(self._running.values())):
            time.sleep(0.2)

    def _dvc(self, *command: str) -> None:
        done = subprocess.run(["dvc", *command], cwd=self.root, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"dvc {command[0]}: {done.stderr.decode().strip()}")


def environment(number: int, workers: int) -> dict[str, str]:
    """Of a worker's processes: its share of the cores, and a GPU of its own where there are several."""
    found = dict(os.environ)
    found.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    gpus = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", _gpus()).split(",") if name]
    if workers > 1 and gpus:
        found["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    return found


def _gpus() -> str:
    import torch

    return ",".join(str(index) for index in range(torch.cuda.device_count()))


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End an experiment and all that it started."""
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(20)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return


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
    from flowprior.training.machine import machine

    gpus = len(_gpus().split(",")) if _gpus() else 0
    workers = args.workers or gpus or min(4, os.cpu_count() or 1)
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
