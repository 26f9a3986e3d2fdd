"""A disk that is full, or read-only: an error that names the file, the old output intact, no half of a new one.

On a tmpfs of a few megabytes where this process may mount one; and, everywhere, with a limit on the
size of a file (RLIMIT_FSIZE; Python ignores the signal, so that writing fails).
"""

import errno
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from flowprior.core.artifacts import atomic_dir
from flowprior.core.io import load_tensors, save_tensors, write_json
from flowprior.core.shard_writer import ShardWriter
from flowprior.core.shards import ShardReader
from flowprior.core.trained import load_trained, save_trained
from flowprior.training.plan import Optimizer, Plan
from flowprior.training.session import Session

from .test_damage import stage
from .workspace import clone, configure, hashes

pytestmark = pytest.mark.slow

MEGABYTE = 2**20
FULL = (errno.ENOSPC, errno.EFBIG)
Scarce = Callable[[], AbstractContextManager[None]]


def mounted(where: Path, megabytes: int) -> None:
    """A tmpfs in the place of a folder, or a skip that says why not."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "flowprior-test", str(where)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no `mount`")
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")


@contextmanager
def tmpfs(where: Path, megabytes: int = 4) -> Iterator[Path]:
    """A tmpfs of a few megabytes."""
    where.mkdir(parents=True, exist_ok=True)
    mounted(where, megabytes)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


@contextmanager
def filled(folder: Path, leave: int = MEGABYTE // 8) -> Iterator[None]:
    """Meanwhile the disk of a folder has no more than so many bytes left."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        with suppress(OSError):
            while True:
                file.write(bytes(MEGABYTE // 16))
        os.truncate(ballast, ballast.stat().st_size - leave)
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def limited(size: int = MEGABYTE // 8) -> Iterator[None]:
    """Meanwhile no file may become larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(params=["tmpfs", "limit"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Scarce]]:
    """A folder, and what makes its disk full for a while."""
    if request.param == "limit":
        yield tmp_path, limited
        return
    with tmpfs(tmp_path / "disk") as folder:
        yield folder, lambda: filled(folder)


def content(folder: Path) -> dict[str, str]:
    """Every file, hidden ones too, but for the ballast."""
    return {name: value for name, value in hashes(folder).items() if name != "ballast"}


@contextmanager
def refused(folder: Path, scarce: Scarce) -> Iterator[None]:
    """What is tried on the full disk fails by the system's own reason and changes nothing."""
    before = content(folder)
    with scarce():
        with pytest.raises(OSError) as caught:  # noqa: PT011 - two numbers are right
            yield
        assert caught.value.errno in FULL
        assert content(folder) == before
    assert content(folder) == before


# --- single files and artifacts -----------------------------------------------------------------------


def test_tensors_that_do_not_fit_leave_the_old_ones(disk: tuple[Path, Scarce]) -> None:
    folder, scarce = disk
    save_tensors(folder / "x.safetensors", {"a": torch.ones(3)})
    with refused(folder, scarce):
        save_tensors(folder / "x.safetensors", {"a": torch.zeros(MEGABYTE // 2)})
    assert load_tensors(folder / "x.safetensors")["a"].tolist() == [1, 1, 1]


def test_json_that_does_not_fit_leaves_the_old_one(disk: tuple[Path, Scarce]) -> None:
    folder, scarce = disk
    write_json(folder / "x.json", 1)
    with refused(folder, scarce):
        write_json(folder / "x.json", "x" * MEGABYTE)


def write_shards(folder: Path, rows: int) -> None:
    """An artifact of eight-byte rows."""
    with atomic_dir(folder) as out:
        writer = ShardWriter(out, rows_per_block=1000)
        for start in range(0, rows, 1000):
            writer.write("train", {"x": np.arange(start, start + 1000)})
        writer.close(kind="numbers", provenance={})


def test_shards_that_do_not_fit_leave_the_old_ones(disk: tuple[Path, Scarce]) -> None:
    """The old artifact is whole while the disk is full, and the new one is once there is room."""
    folder, scarce = disk
    write_shards(folder / "art", 1000)
    with refused(folder, scarce):
        write_shards(folder / "art", 50_000)
    assert len(ShardReader.open(folder / "art", "numbers", "a test").column("train", "x")) == 1000
    write_shards(folder / "art", 50_000)
    column = ShardReader.open(folder / "art", "numbers", "a test").column("train", "x")
    assert column.read().tolist() == list(range(50_000))


def test_a_model_that_does_not_fit_leaves_the_old_one(disk: tuple[Path, Scarce]) -> None:
    folder, scarce = disk
    made_from = {"inputs": {}}
    save_trained(folder / "toy", "toy", nn.Linear(2, 2), {"size": 2}, made_from)
    with refused(folder, scarce):
        save_trained(folder / "toy", "toy", nn.Linear(400, 400), {"size": 400}, made_from)
    assert load_trained(folder / "toy", "toy", "a test").config == {"size": 2}


def test_the_message_names_the_shard(disk: tuple[Path, Scarce]) -> None:
    """Buffered writes fail at an open file, whose name the system's error lacks."""
    folder, scarce = disk
    with scarce(), pytest.raises(OSError, match=rf"'{folder}/\.art\..*/train-000000\.tar'"):
        write_shards(folder / "art", 50_000)


def test_the_message_names_the_file(disk: tuple[Path, Scarce]) -> None:
    folder, scarce = disk
    with scarce(), pytest.raises(OSError, match=rf"'{folder}/.*x\.json"):
        write_json(folder / "x.json", "x" * MEGABYTE)


# --- checkpoints --------------------------------------------------------------------------------------


OPTIMIZER = Optimizer(0.1, 0, "constant", 0.95, 0.0, 1.0, 0.5)
PLAN = Plan(num_steps=6, log_steps=6, checkpoint_steps=2, precision="fp32")


def train(root: Path, at_step: Callable[[int], None] = lambda _: None) -> tuple[int, torch.Tensor]:
    """A model whose checkpoint has a megabyte; the step that it began at, and its weights."""
    with Session("toy", config={}, inputs={}, seed=0, plan=PLAN, root=root) as session:
        torch.manual_seed(0)
        learner = session.learner("toy", nn.Linear(256, 256), OPTIMIZER)
        for step in session.steps():
            at_step(step)
            x = torch.randn(4, 256, generator=session.generator("step", step))
            learner.update(learner.module(x).square().mean())
        return session.started_at_step, learner.averaged.weight.detach().clone()


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tracking, no GPU."""
    monkeypatch.setenv("FLOWPRIOR_MLFLOW", "off")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def train_until_full(folder: Path, scarce: Scarce) -> tuple[list[int], str]:
    """The disk fills up in the third step, the next checkpoint is due after the fourth: steps, and the error."""
    full = scarce()
    reached = []

    def fill(step: int) -> None:
        reached.append(step)
        if step == 2:
            full.__enter__()

    try:
        with pytest.raises((OSError, RuntimeError)) as caught:
            train(folder, fill)
    finally:
        full.__exit__(None, None, None)
    return reached, str(caught.value)


@pytest.mark.usefixtures("quiet")
def test_a_checkpoint_that_does_not_fit_stops_the_run_and_leaves_the_one_before(
    disk: tuple[Path, Scarce], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With room again the run goes on from there and ends as one that was never stopped."""
    folder, scarce = disk
    assert train_until_full(folder, scarce)[0] == [0, 1, 2, 3]
    (state,) = folder.glob(".ckpt/toy/*/state.pt")
    assert torch.load(state, weights_only=True)["step"] == 2
    started, weight = train(folder)
    assert started == 2
    assert torch.equal(weight, train(tmp_path_factory.mktemp("whole"))[1])


@pytest.mark.usefixtures("quiet")
def test_the_message_names_the_checkpoint(disk: tuple[Path, Scarce]) -> None:
    assert ".ckpt/toy/" in train_until_full(*disk)[1]


# --- read-only ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quiet")
def test_a_read_only_disk_is_told_and_read(tmp_path: Path) -> None:
    """Permissions do not stop root; a mount does."""
    with tmpfs(tmp_path / "disk") as folder:
        write_shards(folder / "art", 1000)
        save_tensors(folder / "x.safetensors", {"a": torch.ones(3)})
        before = hashes(folder)
        command = ["mount", "-o", "remount,ro", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a tmpfs cannot be made read-only here")
        for write in (
            lambda: write_shards(folder / "art", 2000),
            lambda: save_tensors(folder / "x.safetensors", {"a": torch.zeros(3)}),
            lambda: write_json(folder / "new" / "x.json", 1),
            lambda: train(folder),
        ):
            with pytest.raises(OSError, match=rf"(?i)read-only file system: '{folder}"):
                write()
        assert (
            len(ShardReader.open(folder / "art", "numbers", "a test").column("train", "x")) == 1000
        )
        assert load_tensors(folder / "x.safetensors")["a"].tolist() == [1, 1, 1]
        assert hashes(folder) == before


# --- real stages --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clone whose data lies on a small disk, with the first three stages run by hand."""
    target = clone(tmp_path_factory.mktemp("disk"))
    with tmpfs(target / "data", 8), tmpfs(target / ".ckpt", 4):
        for name in ("extract_features", "project", "train_flow"):
            done = stage(name, target)
            assert done.returncode == 0, f"{name}\n{done.stderr[-4000:]}"
        yield target


def test_a_stage_on_a_full_disk_stops_and_keeps_its_old_output(repository: Path) -> None:
    """Its last words are the system's, with the place; with room again it writes the same bytes."""
    before = hashes(repository / "data"), hashes(repository / "metrics")
    with filled(repository / "data", MEGABYTE // 64):
        done = stage("project", repository)
        (repository / "data/ballast").rename(repository / "data/.ballast")
        assert (content(repository / "data") | {".ballast": ""}).keys() == {*before[0], ".ballast"}
        (repository / "data/.ballast").rename(repository / "data/ballast")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "No space left on device" in last
    assert "data/.targets." in last
    assert (hashes(repository / "data"), hashes(repository / "metrics")) == before


def test_a_stage_whose_checkpoint_does_not_fit_stops_and_keeps_its_old_output(
    repository: Path,
) -> None:
    before = hashes(repository / "data"), hashes(repository / "metrics")
    params = repository / "params.yaml"
    text = params.read_text(encoding="utf-8")
    configure(repository, seed=1)
    try:
        with filled(repository / ".ckpt", MEGABYTE // 32):
            done = stage("train_flow", repository)
    finally:
        params.write_text(text, encoding="utf-8")
    assert done.returncode == 1
    assert (hashes(repository / "data"), hashes(repository / "metrics")) == before
