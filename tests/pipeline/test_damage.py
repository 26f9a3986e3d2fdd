"""Artifacts damaged between two real stages: the reader stops, says what to do, and keeps its own output."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from flowprior.core.artifacts import MANIFEST, SCHEMA_VERSION

from .workspace import BIN, STAGES, clone, copy_by_hand, hashes

pytestmark = pytest.mark.slow

OUTPUTS = dict(
    zip(
        STAGES,
        ("features", "targets", "flow_prior", "autoencoder", "latents", "mar", "samples"),
        strict=True,
    )
)


def stage(name: str, repository: Path) -> subprocess.CompletedProcess[str]:
    """Run a stage by hand, on one thread, tracking off."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DVC_")}
    environment |= {
        "PATH": f"{BIN}:{environment['PATH']}",
        "FLOWPRIOR_MLFLOW": "off",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "src",
    }
    return subprocess.run(
        [sys.executable, f"stages/{name}.py"],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which every stage has run once, by hand."""
    target = clone(tmp_path_factory.mktemp("damage"))
    for name in STAGES:
        done = stage(name, target)
        assert done.returncode == 0, f"{name}\n{done.stderr[-4000:]}"
    return target


def flip(path: Path) -> None:
    """Another byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Half of it."""
    os.truncate(path, path.stat().st_size // 2)


def of_another_version(path: Path) -> None:
    """A manifest as later code may write it."""
    facts = json.loads(path.read_text()) | {"schema": SCHEMA_VERSION + 1}
    path.write_text(json.dumps(facts))


def half_written(path: Path) -> None:
    """What a process that was killed while it wrote leaves: a folder of another name."""
    path.parent.rename(path.parent.with_name(f".{path.parent.name}.01234567.tmp"))


DAMAGES: list[tuple[str, str, Callable[[Path], object], str, str]] = [
    ("extract_features", "train-000000.tar", Path.unlink, "is missing", "project"),
    ("project", "train-000000.tar", flip, "is damaged: its sha256 differs", "train_flow"),
    ("project", MANIFEST, half_written, "does not exist", "train_ae"),
    ("train_flow", "velocity.safetensors", cut, "bytes, its manifest says", "train_ae"),
    ("train_ae", MANIFEST, of_another_version, "has schema version 2", "encode_latents"),
    ("encode_latents", "validation-000000.tar", cut, "bytes, its manifest says", "train_mar"),
    ("encode_latents", MANIFEST, Path.unlink, "so it was never finished", "train_mar"),
    ("train_mar", "config.json", flip, "is damaged: its sha256 differs", "sample_eval"),
    ("train_ae", "autoencoder.safetensors", flip, "is damaged: its sha256", "sample_eval"),
]


IDS = [f"{reader}-{maker}-{damage.__name__}" for maker, _, damage, _, reader in DAMAGES]


class Refusal(NamedTuple):
    """A reader's end in a copy of the repository with one damage."""

    code: int
    last: str
    written: bool


@pytest.fixture(scope="module")
def refusals(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Refusal]:
    """Every damage and its reader, two at a time: most of it is importing torch."""

    def refusal(name: str, case: tuple[str, str, Callable[[Path], object], str, str]) -> Refusal:
        maker, file, damage, _, reader = case
        copy = copy_by_hand(repository, tmp_path_factory.mktemp("copy") / name)
        damage(copy / "data" / OUTPUTS[maker] / file)
        before = hashes(copy / "data"), hashes(copy / "metrics")
        done = stage(reader, copy)
        written = before != (hashes(copy / "data"), hashes(copy / "metrics"))
        return Refusal(done.returncode, done.stderr.strip().splitlines()[-1], written)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(IDS, pool.map(refusal, IDS, DAMAGES), strict=True))


@pytest.mark.parametrize(("name", "case"), zip(IDS, DAMAGES, strict=True), ids=IDS)
def test_a_damaged_input_stops_the_stage_that_reads_it(
    refusals: dict[str, Refusal],
    name: str,
    case: tuple[str, str, Callable[[Path], object], str, str],
) -> None:
    """The last words name the file, the reason, the stage to run again and `dvc checkout`; nothing was written."""
    maker, file, _, reason, _ = case
    code, last, written = refusals[name]
    assert code == 1
    assert last.startswith("flowprior.core.io.ArtifactError: ")
    where = f"data/{OUTPUTS[maker]}"
    folder_only = reason in ("does not exist", "so it was never finished")
    for words in (
        where if folder_only else f"{where}/{file}",
        reason,
        f"it is made by the stage `{maker}`",
        "`dvc checkout`",
    ):
        assert words in last
    assert not written


def test_a_checkpoint_cut_short_is_set_aside_and_the_stage_starts_over(repository: Path) -> None:
    """It says so, and ends with the bytes that it would have had."""
    before = hashes(repository / "data/flow_prior")
    (state,) = repository.glob(".ckpt/train_flow/*/state.pt")
    cut(state)
    done = stage("train_flow", repository)
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"WARNING the checkpoint {state} cannot be read" in done.stderr
    assert "set aside as state.damaged and the stage starts over" in done.stderr
    assert hashes(repository / "data/flow_prior") == before
