"""Killed anywhere, a pipeline that is started again ends with the bytes of one that nobody disturbed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import psutil  # DVC needs it
import pytest
import yaml

from flowprior.core.artifacts import atomic_dir
from flowprior.core.io import STALE_SECONDS, write_atomic
from flowprior.core.locks import hold
from flowprior.training.checkpoints import FINISHED_KEPT, forget_finished
from flowprior.training.session import Session

from .closure import ROOT
from .workspace import BIN, STAGES, clone, configure, hashes, stages_run

pytestmark = pytest.mark.slow

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
PATIENCE = 240

# What the stages are launched with: counts the moments of a run, and sends a signal at the one that is asked for.
HOOK = """
import json, os, runpy, sys, time
from pathlib import Path

kill = json.loads(os.environ["KILL"])
left = kill["nth"]


def moment(here):
    global left
    if here != kill["moment"]:
        return
    left -= 1
    if left:
        return
    group = os.getpgrp()  # led by dvc
    (os.kill if kill["alone"] else os.killpg)(group, kill["signal"])
    deadline = time.monotonic() + kill["patience"]
    while not (kill["alone"] and Path("go").exists()):
        time.sleep(0.05)
        if time.monotonic() > deadline:
            os._exit(1)


def around(name, call):
    def wrapped(*args, **options):
        moment(f"before {name(*args)}")
        found = call(*args, **options)
        moment(f"after {name(*args)}")
        return found

    return wrapped


os.replace = around(lambda source, target: Path(target).name, os.replace)
from flowprior.core import artifacts

artifacts.atomic_dir = around(lambda final: f"writing {final.name}", artifacts.atomic_dir)
if sys.argv[1].startswith("stages/train_"):
    import torch
    from flowprior.training.learner import Learner

    honest = torch.save

    def save(state, path):
        honest(state, path)
        size = path.stat().st_size
        os.truncate(path, size // 2)
        moment("half a checkpoint")
        honest(state, path)

    torch.save = save
    Learner.update = around(lambda *_: "update", Learner.update)
sys.argv = sys.argv[1:]
sys.path[0] = "stages"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Kill(NamedTuple):
    """A signal at a moment: to all processes, or to DVC alone; then the stage waits for a file `go` and goes on."""

    signal: signal.Signals
    moment: str
    nth: int = 1
    alone: bool = False


class Run:
    """A `dvc repro` that is under way, in a group of its own.

    Attributes:
        root: The clone.
    """

    def __init__(self, root: Path, *arguments: str, kill: Kill | None = None) -> None:
        self.root = root
        self._deadline = time.monotonic() + 2 * PATIENCE
        self._log = root.with_name(f"{root.name}.{time.time_ns()}.log")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("DVC_")}
        environment |= {
            "PATH": f"{BIN}:{environment['PATH']}",
            "FLOWPRIOR_MLFLOW": "off",
            "OMP_NUM_THREADS": "1",
        }
        environment.pop("PYTHONPATH", None)
        if kill is not None:
            hook = root.with_name("hook.py")
            hook.write_text(HOOK, encoding="utf-8")
            environment |= {
                "LAUNCH": f"python {hook}",
                "KILL": json.dumps({**kill._asdict(), "patience": PATIENCE}),
            }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["dvc", "repro", *arguments],
                cwd=root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """All that it printed, a stage that it left behind included."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def ends(self) -> str:
        """Wait for DVC, which must succeed."""
        assert self._process.wait(PATIENCE) == 0, self.said[-6000:]
        return self.said

    def is_killed(self) -> str:
        """Wait for DVC, which must not succeed."""
        assert self._process.wait(PATIENCE) != 0, self.said[-6000:]
        return self.said

    def says(self, text: str) -> None:
        """Wait until it printed something."""
        while self._lives() and text not in self.said:
            time.sleep(0.05)
        assert text in self.said, f"never said {text!r}: {self.said[-6000:]}"

    def strike(self, signal: signal.Signals, alone: bool) -> None:
        """Send a signal to DVC alone, or to it and all that it started."""
        with suppress(ProcessLookupError):
            (os.kill if alone else os.killpg)(self._process.pid, signal)

    def code(self, timeout: float = PATIENCE) -> int | None:
        """DVC's exit status; None if it is still at work after so many seconds."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout)
        return None

    def leaves_nobody(self) -> None:
        """Wait for the whole group, which DVC leads."""
        while self._lives():
            time.sleep(0.05)

    def _lives(self) -> bool:
        """Whether a process of the group is at work; none should be for so long."""
        self._process.poll()
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                group = os.getpgid(process.pid)
                if group == self._process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    assert time.monotonic() < self._deadline, self.said[-6000:]
                    return True
        return False


def outputs(stage: str) -> list[str]:
    """Paths that a stage writes, its metrics included."""
    entries = [*PIPELINE[stage]["outs"], *PIPELINE[stage]["plots"]]
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def made(root: Path, stage: str) -> dict[str, Any]:
    """Hashes of what a stage wrote; of its metrics the figures that must not differ."""
    found: dict[str, Any] = {}
    for name in outputs(stage):
        if (root / name).is_dir():
            found[name] = hashes(root / name)
        elif name == f"metrics/{stage}.json":
            found[name] = json.loads((root / name).read_text(encoding="utf-8"))
        else:
            found[name] = (root / name).read_bytes()
    return found


def scratch(root: Path) -> list[str]:
    """What only a killed run can have left."""
    paths = [path for name in ("data", "metrics", ".ckpt") for path in (root / name).rglob("*")]
    return sorted(
        path.relative_to(root).as_posix()
        for path in paths
        if path.suffix in (".tmp", ".old", ".damaged")
    )


def assert_undisturbed(root: Path, undisturbed: Path, *stages: str) -> None:
    """The stages' outputs are those of the run that nobody disturbed, and nothing else is left."""
    for stage in stages:
        assert made(root, stage) == made(undisturbed, stage)
    assert not scratch(root)


def cut(content: bytes) -> bytes:
    """The first half of it."""
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    """With one bit in the middle turned."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A clone in which the whole pipeline has run once."""
    root = clone(tmp_path_factory.mktemp("undisturbed") / "clone")
    assert stages_run(Run(root).ends()) == STAGES
    return root


def before(stage: str, undisturbed: Path, root: Path) -> Path:
    """A copy in which a stage never ran, and the others did."""
    shutil.copytree(undisturbed, root, symlinks=True, ignore=shutil.ignore_patterns("runs", stage))
    lock = root / "dvc.lock"
    tree = yaml.safe_load(lock.read_text(encoding="utf-8"))
    del tree["stages"][stage]
    lock.write_text(yaml.safe_dump(tree), encoding="utf-8")
    for name in outputs(stage):
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return root


# --- in every stage ---------------------------------------------------------------------------------

TRAINING = [stage for stage in STAGES if stage.startswith("train_")]


def kills_of(stage: str) -> list[tuple[Kill, int]]:
    """Moments that are further and further on, and the step of the checkpoint that is there afterwards."""
    out = Path(outputs(stage)[0]).name
    if stage not in TRAINING:
        return [
            (Kill(signal.SIGTERM, "before manifest.json"), 0),
            (Kill(signal.SIGINT, f"before {out}"), 0),
            (Kill(signal.SIGKILL, f"after {out}"), 0),
        ]
    return [
        (Kill(signal.SIGINT, "before update", 26), 20),
        (Kill(signal.SIGKILL, "half a checkpoint"), 20),
        (Kill(signal.SIGTERM, "before state.pt"), 20),
        (Kill(signal.SIGKILL, "after state.pt"), 40),
        (Kill(signal.SIGKILL, f"before {out}"), 60),
        (Kill(signal.SIGTERM, f"after {stage}.json"), 60),
    ]


def killed_again_and_again(root: Path, stage: str) -> None:
    """Each run goes on from what the one before had saved, and the last one ends."""
    checkpoint = 0
    for kill, saved in kills_of(stage):
        said = Run(root, "--single-item", stage, kill=kill).is_killed()
        assert (f"{stage}: goes on at step {checkpoint} of 60" in said) == bool(checkpoint), said
        checkpoint = saved
    said = Run(root, "--single-item", stage).ends()
    assert (f"{stage}: goes on at step 60 of 60" in said) == (stage in TRAINING), said


def killed_on_its_way(root: Path) -> None:
    """The whole pipeline: at a checkpoint, between an artifact and dvc.lock, in sampling."""
    kills = {
        "train_flow": Kill(signal.SIGKILL, "half a checkpoint", 2),
        "train_ae": Kill(signal.SIGTERM, "after autoencoder"),
        "sample_eval": Kill(signal.SIGINT, "before samples"),
    }
    for stage, kill in kills.items():
        assert stages_run(Run(root, kill=kill).is_killed())[-1] == stage
    assert stages_run(Run(root).ends()) == ["sample_eval"]


@pytest.fixture(scope="module")
def disturbed(
    undisturbed: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[str, tuple[Path, Future[None]]]]:
    """Clones in which the selected tests' runs are killed, two at a time; the key is a stage or `pipeline`."""
    folder = tmp_path_factory.mktemp("disturbed")
    wanted = [
        item.callspec.params["what"]
        for item in request.session.items
        if item.originalname == test_killed_again_and_again_it_ends_as_one_that_was_not.__name__
    ]
    with ThreadPoolExecutor(2) as pool:
        futures = {}
        for what in sorted(wanted, key=lambda what: what != "pipeline"):  # the longest first
            root = folder / what / "clone"
            if what == "pipeline":
                future = pool.submit(killed_on_its_way, clone(root))
            else:
                future = pool.submit(killed_again_and_again, before(what, undisturbed, root), what)
            futures[what] = root, future
        yield futures
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("what", [*STAGES, "pipeline"])
def test_killed_again_and_again_it_ends_as_one_that_was_not(
    what: str, undisturbed: Path, disturbed: dict[str, tuple[Path, Future[None]]]
) -> None:
    """By SIGINT, SIGTERM and SIGKILL; training goes on from its checkpoint, and all bytes are the same."""
    root, future = disturbed[what]
    future.result()
    assert_undisturbed(root, undisturbed, *(STAGES if what == "pipeline" else [what]))


@pytest.mark.parametrize("spoil", [cut, flip])
def test_a_checkpoint_that_the_disk_spoilt_is_set_aside(
    spoil: Callable[[bytes], bytes], undisturbed: Path, tmp_path: Path
) -> None:
    """With a warning; training starts over, and is as ever."""
    root = before("train_flow", undisturbed, tmp_path / "clone")
    kill = Kill(signal.SIGKILL, "after state.pt", 2)
    Run(root, "--single-item", "train_flow", kill=kill).is_killed()
    (state,) = root.glob(".ckpt/train_flow/*/state.pt")
    state.write_bytes(spoil(state.read_bytes()))
    said = Run(root, "--single-item", "train_flow").ends()
    assert "was set aside as state.damaged and the stage starts over" in said
    assert "goes on" not in said
    assert made(root, "train_flow") == made(undisturbed, "train_flow")
    assert scratch(root) == [state.with_suffix(".damaged").relative_to(root).as_posix()]


# --- DVC alone: its stage lives on ------------------------------------------------------------------


def is_up_to_date(root: Path, stage: str) -> bool:
    """Whether what lies there is what dvc.lock says."""
    command = [BIN / "dvc", "status", stage]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return "up to date" in done.stdout


@pytest.mark.parametrize(
    ("stage", "moment", "nth", "awaited"),
    [
        ("train_flow", "before update", 26, "train_flow"),
        ("project", "before manifest.json", 1, "targets"),
    ],
)
def test_a_second_run_waits_for_the_stage_that_a_killed_dvc_left(
    stage: str, moment: str, nth: int, awaited: str, undisturbed: Path, tmp_path: Path
) -> None:
    """It says for whom, goes on from what the first left, and ends the same."""
    root = before(stage, undisturbed, tmp_path / "clone")
    first = Run(root, "--single-item", stage, kill=Kill(signal.SIGKILL, moment, nth, alone=True))
    first.is_killed()
    second = Run(root, "--single-item", stage)
    second.says(f"{awaited}: waiting for process ")
    (root / "go").touch()
    assert ("goes on at step 60 of 60" in second.ends()) == (stage in TRAINING)
    first.leaves_nobody()
    assert "Error" not in first.said
    assert is_up_to_date(root, stage)
    assert_undisturbed(root, undisturbed, stage)


def test_a_stage_that_a_killed_dvc_left_does_not_write_over_the_second_run(
    undisturbed: Path, tmp_path: Path
) -> None:
    """It comes late, and leaves the output, with its metrics, to who was started later."""
    root = before("project", undisturbed, tmp_path / "clone")
    kill = Kill(signal.SIGTERM, "before writing targets", alone=True)
    first = Run(root, "--single-item", "project", kill=kill)
    first.is_killed()
    assert "waiting" not in Run(root, "--single-item", "project").ends()
    (root / "go").touch()
    first.says("is left to process")
    first.leaves_nobody()
    assert is_up_to_date(root, "project")
    assert_undisturbed(root, undisturbed, "project")


def test_a_run_with_other_parameters_has_nothing_of_the_first(
    undisturbed: Path, tmp_path: Path
) -> None:
    """Neither its checkpoint nor, later, its output; with the old parameters again there is its checkpoint."""
    root = before("train_flow", undisturbed, tmp_path / "clone")
    kill = Kill(signal.SIGKILL, "before update", 26, alone=True)
    first = Run(root, "--single-item", "train_flow", kill=kill)
    first.is_killed()
    file = root / "params.yaml"
    old = file.read_text(encoding="utf-8")
    configure(root, train_flow__optimizer__lr=0.003)
    said = Run(root, "--single-item", "train_flow").ends()
    assert "goes on" not in said
    assert "waiting" not in said
    other = made(root, "train_flow")
    assert other != made(undisturbed, "train_flow")
    (root / "go").touch()
    first.says("is left to process")
    first.leaves_nobody()
    assert made(root, "train_flow") == other
    assert is_up_to_date(root, "train_flow")
    file.write_text(old, encoding="utf-8")
    said = Run(root, "--single-item", "train_flow").ends()
    assert "train_flow: goes on at step 60 of 60" in said
    assert_undisturbed(root, undisturbed, "train_flow")


# --- without DVC ------------------------------------------------------------------------------------

WRITER = """
import os, signal, sys
from pathlib import Path
from flowprior.core.artifacts import atomic_dir

left, honest = int(sys.argv[2]), os.replace

def replace(source, target):
    global left
    honest(source, target)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = replace
with atomic_dir(Path(sys.argv[1])) as out:
    (out / "new").touch()
"""


@pytest.mark.parametrize(("renames", "kept"), [(1, "old"), (2, "new")])
def test_a_directory_is_whole_after_a_kill_between_its_renames(
    tmp_path: Path, renames: int, kept: str
) -> None:
    """The next run finds the older or the newer one, also if that run fails, and nothing else is left."""
    final = tmp_path / "out"
    final.mkdir()
    (final / "old").touch()
    command = [sys.executable, "-c", WRITER, str(final), str(renames)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, check=False)
    assert done.returncode == -signal.SIGKILL

    def fail() -> None:
        with atomic_dir(final):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in final.iterdir()] == [kept]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_scratch_of_a_killed_write_is_swept_up_when_it_is_old(tmp_path: Path) -> None:
    """A young one may be of another process that is at work."""
    young, old, other = (tmp_path / f".{name}.tmp" for name in ("a.json.0", "a.json.1", "b.json.2"))
    for file in (young, old, other):
        file.touch()
    then = time.time() - 2 * STALE_SECONDS
    for file in (old, other):
        os.utime(file, (then, then))
    write_atomic(tmp_path / "a.json", "{}")
    assert set(tmp_path.iterdir()) == {young, other, tmp_path / "a.json"}


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut can leave an empty file in the place of the last good one."""
    order = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, n=name, c=call: (order.append(n), c(*args)))
    session = SimpleNamespace(
        is_main=True,
        folder=tmp_path,
        seconds=0.0,
        curves={},
        began_at=None,
        _code={},
        _learners={},
        _sums={},
        _counts={},
    )
    Session._save(session, 1)
    assert order == ["fsync", "replace"]
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_a_finished_checkpoint_that_a_process_uses_is_not_forgotten(tmp_path: Path) -> None:
    """However old it is."""
    folders = [tmp_path / str(number) for number in range(FINISHED_KEPT + 3)]
    for age, folder in enumerate(folders):
        folder.mkdir()
        (folder / "finished").touch()
        os.utime(folder / "finished", (1000 - age, 1000 - age))
    lock = hold(folders[-1] / "lock", "toy")
    forget_finished(folders[0])
    lock.close()
    assert [folder.exists() for folder in folders] == [*[True] * (FINISHED_KEPT + 1), False, True]
