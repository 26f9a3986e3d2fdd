"""Shards of a few rows, and shards that were tampered with and sealed again."""

import io
import itertools
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from flowprior.core.artifacts import MANIFEST, write_manifest
from flowprior.core.io import ArtifactError, read_json
from flowprior.core.shard_writer import ShardWriter
from flowprior.core.shards import ShardReader

KIND, MAKER = "vectors", "the stage `make_vectors`"
SHARD = "train-000000.tar"
PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)


def write(
    root: Path,
    pieces: Iterable[tuple[str, Mapping[str, Any]]],
    rows_per_block: int = 4,
    blocks_per_shard: int = 2,
) -> Path:
    """An artifact from pieces, each for a split."""
    root.mkdir(parents=True)
    writer = ShardWriter(root, rows_per_block, blocks_per_shard)
    for split, arrays in pieces:
        writer.write(split, arrays)
    writer.close(kind=KIND, provenance={})
    return root


def read(root: Path) -> ShardReader:
    """Open an artifact as a stage would."""
    return ShardReader.open(root, KIND, MAKER)


def numbered(rows: int) -> dict[str, Any]:
    """Two arrays in which every row tells its number."""
    vectors = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    return {"vectors": vectors, "labels": np.arange(rows, dtype=np.int64)}


def cut(arrays: Mapping[str, Any], sizes: Iterable[int]) -> list[dict[str, Any]]:
    """Arrays in pieces of the given numbers of rows."""
    edges = np.cumsum([0, *sizes])
    return [
        {name: array[a:b] for name, array in arrays.items()} for a, b in itertools.pairwise(edges)
    ]


SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=5)
BLOCKS, SHARDS = st.integers(1, 10), st.integers(1, 3)


Members = list[tuple[tarfile.TarInfo, bytes]]


def npy(array: Any, **header: Any) -> bytes:
    """Bytes of an `.npy` file, with a header that may say something else than the array."""
    buffer = io.BytesIO()
    truth = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(buffer, truth | header)
    return buffer.getvalue() + array.tobytes()


def forge(root: Path, change: Callable[[Members], Members], **splits: Any) -> None:
    """Rewrite a shard's members and seal it again, as a careless tool or a vandal with a key would."""
    with tarfile.open(root / SHARD) as tar:
        found = [(info, tar.extractfile(info)) for info in tar.getmembers()]
        members = [(info, file.read() if file else b"") for info, file in found]
    with tarfile.open(root / SHARD, "w") as tar:
        for info, content in change(members):
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    reseal(root, **splits)


def reseal(root: Path, **train: Any) -> None:
    """A manifest whose hashes are right again, and whose facts about the training split may be changed."""
    manifest = read_json(root / MANIFEST)
    manifest["splits"]["train"].update(train)
    write_manifest(root, kind=KIND, provenance={}, splits=manifest["splits"])


def named(members: Members, name: str, content: bytes) -> Members:
    """The members with the content of one replaced."""
    return [(info, content if info.name == name else old) for info, old in members]


def assert_refused(root: Path, *words: str) -> None:
    """The manifest is valid, yet the column cannot be opened; the message names the shard."""
    reader = read(root)
    with pytest.raises(ArtifactError) as caught:
        reader.column("train", "x")
    for word in (str(root), *words):
        assert word in str(caught.value)


def rows_of(root: Path) -> dict[str, Any]:
    """All that is in the shards."""
    reader = read(root)
    rows = {name: reader.column("train", name).read().tolist() for name in ("x", "y")}
    assert reader.rows("train") == len(rows["x"])
    return rows
