"""Runs experiments on this machine: one by name, or many with a few workers.

Ctrl-C stops all of it; what ran goes on from its checkpoints when it is started again. For a cluster see `slurm`.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import NamedTuple

from flowprior.config.messages import ParamsError
from flowprior.core.io import ArtifactError
from flowprior.experiments.git import GitError, git
from flowprior.experiments.one_gpu import visible_gpus
from flowprior.experiments.planned import Experiment
from flowprior.experiments.results import FOLDER, Result, load, outdated_stages, save
from flowprior.experiments.runner import (
    LOGS,
    ExperimentError,
    StoppedError,
    Worker,
    cache_folder,
    remove_leftovers,
    try_lock,
)

MAX_WORKERS = 4
"""Workers by default on a machine without GPUs; more would only share its memory bandwidth."""
KNOWN_ERRORS = (ExperimentError, ArtifactError, GitError, ParamsError)
"""Errors whose message says all that there is to say."""


class Outcome(NamedTuple):
    """What became of experiments.

    Attributes:
        done: Names of those whose results are there now.
        failed: Why others have none, by name.
        elsewhere: Names of those that another process was running.
    """

    done: list[str]
    failed: dict[str, str]
    elsewhere: list[str]


def run_one(root: Path, experiment: Experiment, share: int = 1) -> Result:
    """Run an experiment in a worker of its own, whatever results there are, and save its result.

    Args:
        root: The repository, whose HEAD it starts from.
        experiment: What to run.
        share: How many workers share the machine, see `runner.environment`.

    Raises:
        ExperimentError: It failed, or another process is running it.
        ArtifactError: Its files are not right.
        GitError: The repository cannot be cloned.
        KeyboardInterrupt: As it was; what ran was ended, and goes on from its checkpoints next time.
    """
    with (
        interruptible(),
        Worker(root, git(root, "rev-parse", "HEAD"), cache_folder(root), share) as worker,
    ):
        result = _run(root, experiment, worker, always=True)
    if result is None:
        raise ExperimentError(
            f"{experiment.name}: another process is running it; see {LOGS / experiment.name}.log"
        )
    return result


def run_all(
    root: Path, todo: Sequence[Experiment], workers: int = 0, say: Callable[[str], None] = print
) -> Outcome:
    """Run experiments, several at a time, and save the result of each as it ends; one that fails stops no other.

    Args:
        root: The repository, whose HEAD they start from.
        todo: What to run, in order.
        workers: At a time; 0 is one for each GPU, or for each core, at most `MAX_WORKERS`.
        say: Gets a line as each ends.

    Raises:
        KeyboardInterrupt: As it was; what ran was ended, and goes on from its checkpoints next time.
        ExperimentError: No worker can be made.
    """
    workers = min(
        workers or len(visible_gpus()) or min(MAX_WORKERS, os.cpu_count() or 1), max(1, len(todo))
    )
    remove_leftovers(root)
    commit, cache = git(root, "rev-parse", "HEAD"), cache_folder(root)
    waiting: Queue[Experiment] = Queue()
    for experiment in todo:
        waiting.put(experiment)
    outcome = Outcome([], {}, [])
    crew = [Worker(root, commit, cache, workers) for _ in range(workers)]
    threads = [
        threading.Thread(target=_work, args=(root, worker, waiting, outcome, len(todo), say))
        for worker in crew
    ]
    with interruptible():
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.5)
        except KeyboardInterrupt:
            say("stopping; what runs goes on from its checkpoints next time")
            raise
        finally:
            for worker in crew:
                worker.stop()
            for thread in threads:
                thread.join()
            for worker in crew:
                worker.close()
    return outcome


def _work(
    root: Path,
    worker: Worker,
    waiting: "Queue[Experiment]",
    outcome: Outcome,
    total: int,
    say: Callable[[str], None],
) -> None:
    """What a worker's thread does until nothing waits, or all is stopped."""
    while not worker.is_stopping:
        try:
            experiment = waiting.get_nowait()
        except Empty:
            return
        began = time.monotonic()
        try:
            result = _run(root, experiment, worker)
        except StoppedError:
            return
        except Exception as error:  # whatever it is, the other experiments go on
            reason = str(error) if isinstance(error, KNOWN_ERRORS) else repr(error)
            outcome.failed[experiment.name] = reason
            say(f"{experiment.name}: FAILED: {reason}")
            continue
        if result is None:
            outcome.elsewhere.append(experiment.name)
            say(f"{experiment.name}: another process is running it")
            continue
        outcome.done.append(experiment.name)
        minutes = (time.monotonic() - began) / 60
        say(f"{experiment.name}: {minutes:.1f} min, {len(outcome.done)} of {total}")


def _run(root: Path, experiment: Experiment, worker: Worker, always: bool = False) -> Result | None:
    """Run an experiment and save its result, unless another process has made it meanwhile; None if one is at it."""
    lock = try_lock(root / LOGS / f"{experiment.name}.lock")
    if lock is None:
        return None
    with lock:
        path = root / FOLDER / f"{experiment.name}.json"
        if not always and path.exists() and not outdated_stages(kept := load(path), experiment):
            return kept
        result = worker.run(experiment, lock)
        save(root, result)
    return result


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM interrupt like Ctrl-C, so that nothing is left running; in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
