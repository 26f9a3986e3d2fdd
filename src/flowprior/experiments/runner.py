"""Workers: clones of the repository in which plain DVC runs one experiment after another.

A clone shares the repository's DVC cache, and with it the run cache; checkpoints and tracking go to the repository
itself. What comes of an experiment is pushed there as a DVC experiment, and read from the clone's files.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import IO

from flowprior.config.yaml12 import read_yaml
from flowprior.experiments.git import GitError, git
from flowprior.experiments.one_gpu import visible_gpus
from flowprior.experiments.planned import Experiment, dvc_overrides
from flowprior.experiments.results import COSTS, Result, read_workspace

LOGS = Path(".ckpt/tables")
WORKERS = Path(".ckpt/workers")
PATIENCE = ((signal.SIGINT, 15), (signal.SIGTERM, 5), (signal.SIGKILL, 5))
"""How an experiment is ended: signals, and the seconds that each has to work."""


class ExperimentError(RuntimeError):
    """An experiment could not be run, or failed; one line that says why and what to look at."""


class StoppedError(ExperimentError):
    """An experiment was ended because everything is."""


class Worker:
    """A clone of a repository in which experiments run, one after another; a context manager that removes it.

    A clone that a killed process left behind is removed by the next worker, unless its DVC is still running.

    Args:
        root: The repository.
        commit: What experiments start from.
        cache: The repository's DVC cache, see `cache_folder`.
        share: How many workers the machine has, which share its cores and GPUs.

    Attributes:
        number: Of the worker, from 0.
        folder: The clone.
        is_stopping: Whether `stop` was called.
    """

    def __init__(self, root: Path, commit: str, cache: str, share: int = 1) -> None:
        self.root = root.resolve()
        self.commit = commit
        self.number, self._lock = _free_number(self.root)
        self.folder = self.root / WORKERS / str(self.number)
        self._cache = cache
        self._environment = environment(self.root, self.number, share)
        self._ready = False
        self.is_stopping = False
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the clone."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    def run(self, experiment: Experiment, lock: IO[str] | None = None) -> Result:
        """Run an experiment, push it to the repository, and return its result.

        Args:
            experiment: What to run.
            lock: A locked file that the processes that run keep locked, even when this one is killed.

        Raises:
            StoppedError: `stop` was called meanwhile.
            ExperimentError: DVC failed; the message names the log.
            ArtifactError: DVC ended well, but a file that it should have written is missing or is not right.
            GitError: The repository cannot be cloned.
        """
        path = self.root / LOGS / f"{experiment.name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        keep = [self._lock.fileno(), *([lock.fileno()] if lock else [])]
        with path.open("wb") as log:
            if not self._ready:
                self._clone()
            self._ready = False
            self._reset()
            self._link_images(experiment)
            settings = dvc_overrides(experiment.settings, read_yaml(self.folder / "params.yaml"))
            run = ["exp", "run", "--name", experiment.name]
            self._dvc(
                [*run, *(part for setting in settings for part in ("-S", setting))], log, keep
            )
            self._dvc(
                ["exp", "push", "--force", "--no-cache", "origin", experiment.name], log, keep
            )
        result = read_workspace(self.folder, experiment, self.commit)
        self._ready = True
        return result

    def stop(self) -> None:
        """End what runs, from another thread: `run` raises `StoppedError` there. Checkpoints of what ran stay."""
        self.is_stopping = True
        process = self._process
        if process is not None:
            end(process)

    def _clone(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        git(self.root, "clone", "--quiet", str(self.root), str(self.folder))
        for key, default in (("user.name", "flowprior"), ("user.email", "flowprior@localhost")):
            value = default
            with suppress(GitError):  # DVC makes commits, whoever the user is
                value = git(self.root, "config", key)
            git(self.folder, "config", key, value)
        local = self.root / ".dvc/config.local"
        if local.is_file():
            shutil.copy(local, self.folder / ".dvc/config.local")
        command = ["dvc", "config", "--local", "cache.dir", self._cache]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ExperimentError(
                f"{' '.join(command)} in {self.folder}: {_last_line(done.stderr)}"
            )

    def _reset(self) -> None:
        """The commit's files, nothing of the experiment before; stages' outputs stay, DVC replaces what differs."""
        git(
            self.folder,
            "switch",
            "--quiet",
            "--discard-changes",
            "--force-create",
            "worker",
            self.commit,
        )
        git(self.folder, "clean", "--quiet", "-d", "--force")
        listed = git(self.folder, "for-each-ref", "--format=delete %(refname)", "refs/exps")
        git(self.folder, "update-ref", "--stdin", stdin=listed.encode() + b"\n" if listed else b"")
        shutil.rmtree(self.folder / COSTS, ignore_errors=True)

    def _link_images(self, experiment: Experiment) -> None:
        """Images that lie in the repository, where git ignores them, are to be found in the clone too."""
        for params in experiment.params.values():
            place = params.get("images", {}).get("path")
            if place and not Path(place).is_absolute():
                here, there = self.folder / place, self.root / place
                if there.exists() and not here.exists():
                    here.parent.mkdir(parents=True, exist_ok=True)
                    here.unlink(missing_ok=True)  # a link that leads nowhere
                    here.symlink_to(there.resolve())

    def _dvc(self, command: Sequence[str], log: IO[bytes], keep: Sequence[int]) -> None:
        log.write(f"$ dvc {' '.join(command)}\n".encode())
        log.flush()
        process = self._process = subprocess.Popen(
            ["dvc", *command],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=keep,
        )
        try:
            if self.is_stopping:
                end(process)
            status = process.wait()
        finally:
            if process.poll() != 0:
                end(process)  # and what a killed DVC left running
            self._process = None
        if self.is_stopping:
            raise StoppedError("stopped")
        if status:
            name = Path(log.name)
            last = _last_line(name.read_text(errors="replace"))
            raise ExperimentError(
                f"exit status {status}, see {name.relative_to(self.root)}: {last}"
            )


def try_lock(path: Path) -> IO[str] | None:
    """Take an exclusive lock on a file; None where another process has it. Closing the file gives it back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _free_number(root: Path) -> tuple[int, IO[str]]:
    """The first number that no worker has, and the lock that keeps it."""
    return next(
        (number, lock)
        for number in count()
        if (lock := try_lock(root / WORKERS / f"{number}.lock")) is not None
    )


def remove_leftovers(root: Path) -> None:
    """Remove the clones of workers that were killed, but for those whose DVC is still running."""
    for folder in (root / WORKERS).glob("*/"):
        if (lock := try_lock(folder.with_name(f"{folder.name}.lock"))) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            lock.close()


def cache_folder(root: Path) -> str:
    """The folder of the repository's DVC cache.

    Raises:
        ExperimentError: There is no DVC, or no repository of it.
    """
    try:
        done = subprocess.run(
            ["dvc", "cache", "dir"],
            cwd=root,
            env=tools(),
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise ExperimentError("there is no command dvc; install it with pip install dvc") from None
    if done.returncode:
        raise ExperimentError(f"dvc cache dir in {root}: {_last_line(done.stderr)}")
    return done.stdout.strip()


def tools() -> dict[str, str]:
    """The environment in which `python` and `dvc` are those beside the Python that runs this."""
    variables = dict(os.environ)
    folder = Path(sys.executable).parent
    python = shutil.which("python")
    if python is None or Path(python).parent != folder:
        variables["PATH"] = os.pathsep.join([str(folder), variables.get("PATH", os.defpath)])
    return variables


def environment(root: Path, number: int, share: int) -> dict[str, str]:
    """The environment of a worker's processes: its share of the cores, and a GPU of its own where there are several.

    Args:
        root: Where checkpoints and tracking go, unless `FLOWPRIOR_HOME` says otherwise already.
        number: Of the worker.
        share: Number of workers.
    """
    variables = {"FLOWPRIOR_HOME": str(root)} | tools()
    variables.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // share)))
    if share > 1 and (gpus := visible_gpus()):
        variables["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    return variables


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a session, and all that it started: politely first."""
    for number, seconds in PATIENCE:
        if process.poll() is not None:
            break
        if number == signal.SIGINT and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            continue  # what this process ignored from the start, the others ignore as well
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(seconds)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"
