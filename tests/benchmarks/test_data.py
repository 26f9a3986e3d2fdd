"""Shards, encoding and neighbours beside plain ways; whether data keep up with the model; memory at 1x and 10x vectors.

Run with `make bench`.
"""

import io
import re
import shutil
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowprior.autoencoder.shape import Shape
from flowprior.autoencoder.vit import build_autoencoder
from flowprior.core import rng
from flowprior.core.artifacts import provenance
from flowprior.core.shard_writer import ShardWriter, to_float16
from flowprior.core.shards import ShardReader
from flowprior.images.opening import open_images
from flowprior.stats.neighbours import NeighbourIndex
from tests.gpu.full_width import write_images

from .conftest import keep, running, workspace
from .side_by_side import side_by_side

ROWS = 4_000
TOKENS, DIM = 64, 32


def rows(n: int) -> np.ndarray:
    """Latents of images, float16."""
    return np.random.default_rng(0).normal(size=(n, 1, TOKENS, DIM)).astype(np.float16)


def write(folder: Path, latents: np.ndarray) -> Path:
    """Our shards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    writer = ShardWriter(folder)
    writer.write("train", {"latents": latents, "labels": np.zeros(len(latents), dtype=np.int64)})
    writer.close(kind="latents", provenance=provenance({}))
    return folder


def write_plain(path: Path, latents: np.ndarray) -> Path:
    """A member for each row, as webdataset's tutorials do."""
    with tarfile.open(path, "w") as tar:
        for index, row in enumerate(latents):
            file = io.BytesIO()
            np.save(file, row)
            info = tarfile.TarInfo(f"{index:08d}.latents.npy")
            info.size = file.tell()
            file.seek(0)
            tar.addfile(info, file)
    return path


def read_plain(path: Path) -> np.ndarray:
    """All rows again."""
    with tarfile.open(path) as tar:
        members = (tar.extractfile(member) for member in tar)
        return np.stack([np.load(io.BytesIO(file.read())) for file in members if file])


def test_shard_writing_and_reading(benchmark, tmp_path: Path) -> None:
    """MB/s; the plain twin has a tar member for each row. Hashes are computed and verified, the twin has none."""
    latents = rows(ROWS)
    megabytes = latents.nbytes / 1e6
    written = side_by_side(
        lambda: write_plain(tmp_path / "plain.tar", latents),
        lambda: write(tmp_path / "ours", latents),
        4.0,
    )

    def read() -> np.ndarray:
        reader = ShardReader.open(tmp_path / "ours", "latents", "")
        return reader.column("train", "latents").read()

    assert np.array_equal(read_plain(tmp_path / "plain.tar"), read())
    got = side_by_side(lambda: read_plain(tmp_path / "plain.tar"), read, 4.0)
    for name, what, twin, medians in (
        (
            "shard_writing",
            "writing latents to shards",
            "a tar member for each row, no hashes",
            written,
        ),
        (
            "shard_reading",
            "reading shards of latents and verifying them",
            "a tar member for each row, not verified",
            got,
        ),
    ):
        rate = megabytes / medians.seconds
        found = {"ratio": medians.ratio, "seconds": medians.seconds, "mb_per_second": rate}
        keep(name, {"what": what, "twin": twin, **found})
    benchmark.pedantic(read, rounds=1)


ENCODERS = {
    "cpu": (Shape(8, 1, 4, 8, 4, 64, 2, 4), 512),
    "gpu": (Shape(256, 3, 16, 64, 32, 1024, 24, 16), 256),
}
"""Of the digits preset and of the paper; and images at once."""


@pytest.mark.parametrize("size", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_encoding_is_fed(benchmark, tmp_path: Path, device: torch.device, size: str) -> None:
    """Seconds of reading images (digits, or JPEGs) and writing their latents; their share of that and encoding."""
    shape, n = ENCODERS[size]
    source: Any = {"source": "digits"}
    if size != "cpu":
        write_images(tmp_path / "images", shape.image_size)
        source = {"source": "imagefolder", "path": str(tmp_path / "images")}
    images = open_images(split="train", split_seed=0, size=shape.image_size, **source)
    with rng.scoped(0, "benchmark"):
        autoencoder = build_autoencoder(shape, "plain").eval().to(device)
    pieces = range(n)
    loaded = images.images(pieces)

    @torch.no_grad()
    def encode() -> np.ndarray:
        return to_float16(autoencoder.encode(loaded.to(device)).mean)

    latents = encode()

    def feed() -> None:
        images.images(pieces)
        write(tmp_path / "latents", latents)

    encoding, feeding, _, _ = side_by_side(encode, feed)
    keep("encode_latents", {"seconds": feeding, "share_of_stage": feeding / (feeding + encoding)})
    benchmark.pedantic(feed, rounds=1)


def test_neighbours(compared) -> None:
    """10 nearest of 10 000 targets for 10 000 latents; the plain twin is torch's distances and topk."""
    draw = np.random.default_rng(0)
    targets, latents = (draw.normal(size=(10_000, 32)).astype(np.float32) for _ in range(2))
    ours = partial(NeighbourIndex(targets).squared_distances, latents, 10)

    def plain() -> torch.Tensor:
        found = torch.cdist(torch.from_numpy(latents), torch.from_numpy(targets)).square()
        return found.topk(10, largest=False).values

    assert np.allclose(plain().numpy(), ours(), atol=1e-2)
    compared(
        "neighbours",
        plain,
        ours,
        what="10 nearest of 10 000 targets for 10 000 latents",
        twin="torch's cdist and topk",
        counted=False,
    )


def most_memory(process: subprocess.Popen[bytes]) -> float:
    """MiB of the memory of a process that is its own, at its most; pages of files that it maps are not counted."""
    most = 0
    while process.poll() is None:
        with suppress(OSError, IndexError):
            status = Path(f"/proc/{process.pid}/status").read_text()
            most = max(most, int(re.findall(r"^RssAnon:\s*(\d+) kB$", status, re.MULTILINE)[0]))
        time.sleep(0.01)
    assert process.returncode == 0
    return most / 1024


@pytest.mark.parametrize("times", [1, 10])
def test_memory_at_one_and_ten_times_the_vectors(benchmark, tmp_path: Path, times: int) -> None:
    """Peaks of three stages with a file of 100 000 vectors of 64 dims, and with one of ten times as many."""
    features = np.random.default_rng(0).normal(size=(100_000 * times, 64)).astype(np.float32)
    np.save(tmp_path / "features.npy", features)

    def change(tree: Any) -> None:
        tree["preset"] = "smoke"
        tree["prior"] |= {"source": "file", "path": str(tmp_path / "features.npy")}
        tree["extract_features"]["max_vectors"] = len(features)

    env = workspace(tmp_path, change)
    clock = time.perf_counter()
    found = {}
    for stage in ("extract_features", "project", "train_flow"):
        command = [sys.executable, "-c", running(stage)]
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.DEVNULL)
        found[f"{stage}_mib_{times}x"] = most_memory(process)
    keep("memory", found)
    benchmark.pedantic(lambda: time.perf_counter() - clock, rounds=1)
