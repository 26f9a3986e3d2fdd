"""Experiments at work: each a DVC of its own in a temporary copy of the tree, several at a time."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, Queue
from typing import Any, NamedTuple

from flowprior.config import params
from flowprior.experiments.listing import Experiment
from flowprior.experiments.results import dvc_experiments, save, taken_from

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
    named = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(num_gpus()))))
    gpus = [name for name in named.split(",") if name]
    if workers > 1 and gpus:
        found["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    return found


def num_gpus() -> int:
    """That torch sees."""
    import torch

    return torch.cuda.device_count()


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
