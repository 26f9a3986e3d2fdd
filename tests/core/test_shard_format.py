"""A shard that is not what its manifest says is refused, though all hashes are right."""

import io
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowprior.core.artifacts import MANIFEST, write_manifest
from flowprior.core.io import ArtifactError, read_json
from flowprior.core.shards import ShardReader

from ..strangers import (
    CHANGES,
    FUZZ,
    changed,
    copied,
    frugal,
    mended,
    no_hang,
    replace,
    same_or_refused,
)
from .written import (
    KIND,
    MAKER,
    SHARD,
    Members,
    assert_refused,
    forge,
    named,
    npy,
    reseal,
    rows_of,
    write,
)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """Six rows in blocks of four: two blocks in one shard."""
    return write(tmp_path / "art", [("train", {"x": np.arange(12.0).reshape(6, 2)})])


@pytest.mark.parametrize("keep", [0, 100, 512, 700, 1100])
def test_a_truncated_tar_is_refused_under_a_valid_manifest(artifact: Path, keep: int) -> None:
    """Half a tar reads without error elsewhere; here the blocks it should hold are asked for at once."""
    content = (artifact / SHARD).read_bytes()
    (artifact / SHARD).write_bytes(content[:keep])
    reseal(artifact)
    assert_refused(artifact, SHARD)


def test_bytes_that_are_no_tar_are_refused(artifact: Path) -> None:
    """Noise, and a compressed tar, which cannot be mapped."""
    (artifact / SHARD).write_bytes(b"noise" * 1000)
    reseal(artifact)
    assert_refused(artifact, SHARD, "not an uncompressed tar")
    with tarfile.open(artifact / SHARD, "w:gz"):
        pass
    reseal(artifact)
    assert_refused(artifact, SHARD, "not an uncompressed tar")


BLOCK = np.arange(8.0).reshape(4, 2)


@pytest.mark.parametrize(
    "header",
    [
        {"shape": (3, 2)},
        {"shape": (400, 2)},
        {"shape": (2, 4)},
        {"shape": (8,)},
        {"shape": (4, 2, 1)},
        {"descr": "<f4"},
        {"descr": "<i8"},
        {"descr": ">f8"},
        {"descr": "|O"},
        {"fortran_order": True},
    ],
    ids=str,
)
def test_a_header_that_lies_about_its_array_is_refused(
    artifact: Path, header: dict[str, Any]
) -> None:
    """Shape, dtype, byte order or memory order other than the manifest's."""
    forge(artifact, lambda members: named(members, "000000.x.npy", npy(BLOCK, **header)))
    assert_refused(artifact, SHARD, "000000.x.npy", "expected")


@pytest.mark.parametrize("shape", [(3, 2), (400, 2)])
def test_a_header_and_a_manifest_that_lie_together_are_refused(
    artifact: Path, shape: tuple[int, int]
) -> None:
    """The member must have as many bytes as its array, so that no map reaches into its neighbour."""
    forge(
        artifact,
        lambda members: named(members, "000000.x.npy", npy(BLOCK, shape=shape)),
        blocks=[{"shard": SHARD, "key": "000000", "rows": shape[0]}],
    )
    assert_refused(artifact, SHARD, "000000.x.npy", "too few or too many")


UNCLOSED = pytest.param(b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f8'")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x93NUM", b"not an array", b"\x93NUMPY\x01\x00\x10\x00{'descr': 1}    \n", UNCLOSED],
    ids=["empty", "cut in the magic", "no magic", "other keys", "unclosed"],
)
def test_a_member_that_is_no_array_is_refused(artifact: Path, content: bytes) -> None:
    """Empty, cut off, something else."""
    forge(artifact, lambda members: named(members, "000000.x.npy", content))
    assert_refused(artifact, SHARD, "000000.x.npy", "not an .npy array")


def test_a_missing_member_and_a_missing_shard_are_refused(artifact: Path) -> None:
    """Every block of the manifest must be where it says, in a file whose hash it has."""
    forge(artifact, lambda members: members[:1])
    assert_refused(artifact, SHARD, "has no member '000001.x.npy'")
    reseal(artifact, blocks=[{"shard": "other.tar", "key": "000000", "rows": 4}])
    assert_refused(artifact, "other.tar", "not among the files")


class ExitingBomb:
    """Unpickling it would raise, and be noticed."""

    def __reduce__(self) -> tuple[type[SystemExit], tuple[str]]:
        """Call SystemExit on loading."""
        return SystemExit, ("a pickle was loaded",)


def test_an_array_of_objects_is_refused_and_never_unpickled(artifact: Path) -> None:
    """Even where header and manifest agree that there are objects."""
    content = npy(np.zeros(0), descr="|O", shape=(4, 2)) + pickle.dumps([ExitingBomb()] * 8)
    forge(
        artifact,
        lambda members: named(members, "000000.x.npy", content),
        fields={"x": {"dtype": "|O", "shape": [2]}},
        blocks=[{"shard": SHARD, "key": "000000", "rows": 4}],
    )
    assert_refused(artifact, SHARD, "000000.x.npy")


def renamed(name: str) -> Callable[[Members], Members]:
    """Give the first member another name."""

    def change(members: Members) -> Members:
        members[0][0].name = name
        return members

    return change


def typed(kind: bytes) -> Callable[[Members], Members]:
    """Add a member of another type beside the two arrays."""

    def change(members: Members) -> Members:
        info = tarfile.TarInfo("extra")
        info.type, info.linkname = kind, "/etc/passwd"
        return [*members, (info, b"")]

    return change


@pytest.mark.parametrize(
    "change",
    [
        renamed("/etc/000000.x.npy"),
        renamed("../000000.x.npy"),
        renamed("./000000.x.npy"),
        renamed("folder/000000.x.npy"),
        typed(tarfile.SYMTYPE),
        typed(tarfile.LNKTYPE),
        typed(tarfile.DIRTYPE),
        typed(tarfile.FIFOTYPE),
        typed(tarfile.CHRTYPE),
    ],
    ids=[
        "absolute",
        "parent",
        "dot",
        "folder",
        "symlink",
        "hard link",
        "directory",
        "fifo",
        "device",
    ],
)
def test_members_that_are_not_plain_files_of_their_own_are_refused(
    artifact: Path, change: Callable[[Members], Members]
) -> None:
    """No paths, no links, no devices: a shard is a flat list of arrays."""
    forge(artifact, change)
    assert_refused(artifact, SHARD, "not a plain file of its own")


def block(name: str, size: int, kind: bytes = b"0", pax: bool = False) -> bytes:
    """The header of a member; sizes that octal digits cannot hold in GNU's base 256, signed."""
    info = tarfile.TarInfo(name)
    info.type = kind
    raw = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if 0 <= size < 8**11:
        raw[124:136] = b"%011o\0" % size
    else:
        sign = b"\xff" if size < 0 else b"\x80"
        raw[124:136] = sign + (size % 256**11).to_bytes(11, "big")
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def padded(content: bytes) -> bytes:
    """Content in whole blocks."""
    return content + bytes(-len(content) % 512)


def pax(key: str, value: str) -> bytes:
    """A pax header that sets one thing of the next member."""
    length = len(f" {key}={value}\n") + 2
    record = f"{length} {key}={value}\n".encode()
    assert len(record) == length
    return block("pax", len(record), b"x") + padded(record)


def column_refused(root: Path, *words: str) -> None:
    """The manifest's hashes are right, yet the column cannot be opened."""
    reader = ShardReader.open(root, KIND, MAKER)
    with frugal(), pytest.raises(ArtifactError) as caught:
        reader.column("train", "x")
    for word in (str(root), *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("shape", [(2**62, 4), (2**32, 2**32), (10**15, 2), (10**12, 10**12)])
def test_rows_that_only_a_header_has_are_refused(artifact: Path, shape: tuple[int, int]) -> None:
    """Header and manifest agree; the product of the shape may be 0 in 64 bits."""
    forge(
        artifact,
        lambda members: named(members, "000000.x.npy", npy(np.zeros(0), shape=shape)),
        rows=shape[0],
        fields={"x": {"dtype": "<f8", "shape": [shape[1]]}},
        blocks=[{"shard": SHARD, "key": "000000", "rows": shape[0]}],
    )
    column_refused(artifact, SHARD, "000000.x.npy", "too few or too many")


def test_a_block_that_is_named_a_million_times_is_refused(artifact: Path) -> None:
    """Else a shard of a kilobyte would be a column of a terabyte."""
    block = {"shard": SHARD, "key": "000000", "rows": 4}
    reseal(artifact, blocks=[block] * 1000, rows=4000)
    column_refused(artifact, SHARD, "no member '000000.x.npy'")


def test_rows_that_are_not_the_blocks_are_refused(artifact: Path) -> None:
    reseal(artifact, rows=10**15)
    column_refused(artifact, "holds 6 rows, its manifest says 1000000000000000")


@pytest.mark.parametrize(
    "facts",
    [
        {"rows": None},
        {"rows": "6"},
        {"blocks": {}},
        {"blocks": [7]},
        {"blocks": [{"shard": SHARD, "key": "000000"}]},
        {"blocks": [{"shard": SHARD, "key": "000000", "rows": -4}]},
        {"blocks": [{"shard": [], "key": "000000", "rows": 4}]},
        {"fields": []},
        {"fields": {"x": None}},
        {"fields": {"x": {"dtype": "<f8", "shape": [-2]}}},
        {"fields": {"x": {"dtype": "<f8", "shape": [2.0]}}},
        {"fields": {"x": {"dtype": "<f8", "shape": [1] * 99}}},
        {"fields": {"x": {"dtype": 8, "shape": [2]}}},
    ],
    ids=str,
)
def test_a_split_that_no_writer_describes_so_is_refused(
    artifact: Path, facts: dict[str, Any]
) -> None:
    reseal(artifact, **facts)
    column_refused(artifact, "does not describe split 'train'")
    with pytest.raises(ArtifactError, match="does not describe"):
        ShardReader.open(artifact, KIND, MAKER).rows("train")


@pytest.mark.parametrize(
    "dtype", ["what", "f4,f4", "<f3", "U999999999", "(9,)f8", "V0", "<i" + "9" * 99]
)
def test_types_that_are_not_numbers_are_refused(artifact: Path, dtype: str) -> None:
    reseal(artifact, fields={"x": {"dtype": dtype, "shape": [2]}})
    column_refused(artifact)


@pytest.mark.parametrize("dtype", ["|S8", "|V8", "<U2", "<M8[s]"])
def test_arrays_of_other_things_than_numbers_are_refused(artifact: Path, dtype: str) -> None:
    """Header and manifest agree."""
    content = npy(np.zeros((4, 2)), descr=dtype)
    forge(
        artifact,
        lambda members: named(members, "000000.x.npy", content),
        fields={"x": {"dtype": dtype, "shape": [2]}},
    )
    column_refused(artifact, SHARD, "000000.x.npy", "not numbers")


@pytest.mark.parametrize("header", ["-" * 9000 + "1", "(" * 9000, "[" * 900 + "]" * 900])
def test_a_header_that_is_hard_to_parse_is_refused(artifact: Path, header: str) -> None:
    """It is a Python expression; deep ones overflow the parser."""
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(64)
    forge(artifact, lambda members: named(members, "000000.x.npy", content))
    reader = ShardReader.open(artifact, KIND, MAKER)
    with no_hang(), pytest.raises(ArtifactError, match=r"000000\.x\.npy' is not an \.npy array"):
        reader.column("train", "x")


@FUZZ
@given(changes=CHANGES, mend=st.booleans())
def test_a_tar_of_other_bytes_is_refused_or_holds_numbers(
    vectors: Path, changes: list[Any], mend: bool
) -> None:
    """Sealed again, headers mended or not: numbers may differ (nothing but the seal tells), their form may not."""
    with copied(vectors) as root:
        content = changed((vectors / SHARD).read_bytes(), changes)
        replace(root / SHARD, mended(content) if mend else content)
        manifest = read_json(vectors / MANIFEST)
        write_manifest(root, kind="vectors", provenance={}, splits=manifest["splits"])
        same_or_refused(lambda: len(rows_of(root)["x"]), 8, str(root))


@FUZZ
@given(changes=CHANGES)
def test_a_member_of_other_bytes_is_refused_or_holds_numbers(
    vectors: Path, changes: list[Any]
) -> None:
    """The header of one array is tampered with, in a sound tar."""
    with copied(vectors) as root:
        with tarfile.open(vectors / SHARD) as old:
            members = [(info, old.extractfile(info).read()) for info in old]  # type: ignore[union-attr]
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as new:
            for info, content in members:
                if info.name == "000000.x.npy":
                    content = changed(content[:128], changes) + content[128:]
                info.size = len(content)
                new.addfile(info, io.BytesIO(content))
        replace(root / SHARD, buffer.getvalue())
        manifest = read_json(vectors / MANIFEST)
        write_manifest(root, kind="vectors", provenance={}, splits=manifest["splits"])
        same_or_refused(lambda: len(rows_of(root)["x"]), 8, str(root))
