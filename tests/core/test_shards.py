"""Shards give back what was written, in any order, and refuse what they cannot vouch for."""

import io
import itertools
import pickle
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from flowprior.core.artifacts import MANIFEST, write_manifest
from flowprior.core.io import ArtifactError, read_json
from flowprior.core.shard_writer import ShardWriter
from flowprior.core.shards import Column, ShardReader

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


# --- round trips ------------------------------------------------------------------------------------


@PROPERTY
@given(sizes=SIZES, rows_per_block=BLOCKS, blocks_per_shard=SHARDS)
def test_rows_survive_a_round_trip_whatever_the_blocks(
    sizes: list[int], rows_per_block: int, blocks_per_shard: int
) -> None:
    """Rows, dtypes and order come back for any cut of the writes, blocks and shards."""
    sizes = [*sizes, 1]
    arrays = numbered(sum(sizes))
    with tempfile.TemporaryDirectory() as folder:
        pieces = [("train", piece) for piece in cut(arrays, sizes)]
        reader = read(write(Path(folder) / "art", pieces, rows_per_block, blocks_per_shard))
        assert reader.rows("train") == sum(sizes)
        for name, array in arrays.items():
            column = reader.column("train", name)
            assert (column.shape, column.dtype, len(column)) == (
                array.shape,
                array.dtype,
                sum(sizes),
            )
            assert all(len(block) == rows_per_block for block in list(column.blocks())[:-1])
            np.testing.assert_array_equal(np.concatenate(list(column.blocks())), array)
            np.testing.assert_array_equal(column.read(), array)


@PROPERTY
@given(train=SIZES, validation=SIZES, rows_per_block=BLOCKS, blocks_per_shard=SHARDS)
def test_splits_survive_a_round_trip_side_by_side(
    train: list[int], validation: list[int], rows_per_block: int, blocks_per_shard: int
) -> None:
    """One split after the other: neither loses its last, incomplete block nor any other."""
    arrays = {"train": numbered(sum(train) + 1), "validation": numbered(sum(validation) + 1)}
    with tempfile.TemporaryDirectory() as folder:
        pieces = [("train", piece) for piece in cut(arrays["train"], [*train, 1])]
        pieces += [("validation", piece) for piece in cut(arrays["validation"], [*validation, 1])]
        reader = read(write(Path(folder) / "art", pieces, rows_per_block, blocks_per_shard))
        for split, expected in arrays.items():
            for name, array in expected.items():
                np.testing.assert_array_equal(reader.column(split, name).read(), array)


FOREIGN = pytest.param(">f4")


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "uint8", "int32", "bool", FOREIGN]
)
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0,)])
def test_any_plain_dtype_and_trailing_shape_survives(
    tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    """Scalars a row, several axes, none at all, other byte orders."""
    array = (np.arange(7 * int(np.prod(shape))) % 2).reshape(7, *shape).astype(dtype)
    column = read(write(tmp_path / "art", [("train", {"x": array})])).column("train", "x")
    assert column.dtype == np.dtype(dtype)
    assert column.shape == (7, *shape)
    np.testing.assert_array_equal(column.read(), array)


def test_views_are_written_as_what_they_show(tmp_path: Path) -> None:
    """Transposed and strided arrays come back in the order of their indices."""
    array = np.arange(60.0).reshape(3, 20).T[::2, ::-1]
    reader = read(write(tmp_path / "art", [("train", {"x": array})]))
    np.testing.assert_array_equal(reader.column("train", "x").read(), array)


def test_a_buffer_may_be_used_again_after_a_write(tmp_path: Path) -> None:
    """A loop that fills one array over and over writes what was in it at each write."""
    (tmp_path / "art").mkdir()
    writer = ShardWriter(tmp_path / "art", rows_per_block=10)
    buffer = np.zeros(2)
    for value in range(3):
        buffer[:] = value
        writer.write("train", {"x": buffer})
    writer.close(kind=KIND, provenance={})
    assert read(tmp_path / "art").column("train", "x").read().tolist() == [0, 0, 1, 1, 2, 2]


@PROPERTY
@given(one=SIZES, two=SIZES, rows_per_block=BLOCKS)
def test_equal_rows_give_equal_bytes_however_they_arrive(
    one: list[int], two: list[int], rows_per_block: int
) -> None:
    """The digest depends on rows and blocks, not on the pieces, the place, the clock or the order of names."""
    rows = sum(one) + sum(two) + 1
    arrays = numbered(rows)
    backwards = dict(reversed(arrays.items()))
    with tempfile.TemporaryDirectory() as folder:
        first = cut(arrays, [*one, *two, 1])
        second = cut(backwards, [1, *two, *one])
        digests = {
            read(write(Path(folder) / name, [("train", p) for p in pieces], rows_per_block)).digest
            for name, pieces in {"a": first, "b/c": second}.items()
        }
        contents = {
            tuple(path.read_bytes() for path in sorted((Path(folder) / name).iterdir()))
            for name in ("a", "b/c")
        }
    assert len(digests) == len(contents) == 1


def test_shards_hold_as_many_blocks_as_asked_for(tmp_path: Path) -> None:
    """Ten rows in blocks of three, two blocks a shard: two shards, and the manifest says what is where."""
    root = write(tmp_path / "art", [("train", numbered(10))], rows_per_block=3, blocks_per_shard=2)
    assert sorted(p.name for p in root.iterdir()) == [MANIFEST, SHARD, "train-000001.tar"]
    facts = read_json(root / MANIFEST)["splits"]["train"]
    assert [(b["shard"], b["key"], b["rows"]) for b in facts["blocks"]] == [
        (SHARD, "000000", 3),
        (SHARD, "000001", 3),
        ("train-000001.tar", "000002", 3),
        ("train-000001.tar", "000003", 1),
    ]
    assert facts["fields"]["vectors"] == {"dtype": "<f4", "shape": [3]}


def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    """They are its format: a sample per block, an `.npy` member per array."""
    root = write(tmp_path / "art", [("train", numbered(10))], rows_per_block=3, blocks_per_shard=64)
    dataset = webdataset.WebDataset(str(root / SHARD), shardshuffle=False)
    samples = list(dataset)
    assert [sample["__key__"] for sample in samples] == ["000000", "000001", "000002", "000003"]
    for name, array in numbered(10).items():
        parts = [np.load(io.BytesIO(s[f"{name}.npy"]), allow_pickle=False) for s in samples]
        np.testing.assert_array_equal(np.concatenate(parts), array)


# --- reading ----------------------------------------------------------------------------------------


@PROPERTY
@given(
    rows=st.integers(1, 30),
    rows_per_block=BLOCKS,
    seed=st.integers(0, 1000),
    count=st.integers(1, 40),
)
def test_gather_returns_rows_in_the_order_asked_for(
    rows: int, rows_per_block: int, seed: int, count: int
) -> None:
    """Any indices, repeated ones too, as numpy's indexing would, copied to memory."""
    arrays = numbered(rows)
    order = np.random.default_rng(seed).integers(0, rows, count)
    with tempfile.TemporaryDirectory() as folder:
        column = read(write(Path(folder) / "art", [("train", arrays)], rows_per_block)).column(
            "train", "vectors"
        )
        gathered = column.gather(order)
        np.testing.assert_array_equal(gathered, arrays["vectors"][order])
        for same in (order.tolist(), order.astype(np.uint64)):
            np.testing.assert_array_equal(column.gather(same), gathered)
        gathered[:] = -1
        np.testing.assert_array_equal(column.read(), arrays["vectors"])


@pytest.mark.parametrize("rows_per_block", [2, 100])
@pytest.mark.parametrize("rows", [[-1], [0, 5], [99]])
def test_an_index_out_of_range_is_an_error(
    tmp_path: Path, rows_per_block: int, rows: list[int]
) -> None:
    """Negative indices too: the message gives the range."""
    root = write(tmp_path / "art", [("train", numbered(5))], rows_per_block)
    with pytest.raises(IndexError, match=r"must lie in \[0, 5\)"):
        read(root).column("train", "labels").gather(rows)


def test_gathering_nothing_gives_nothing(tmp_path: Path) -> None:
    """An empty selection from several blocks has no rows and the right shape and dtype."""
    column = read(write(tmp_path / "art", [("train", numbered(5))], 2)).column("train", "vectors")
    assert column.gather([]).shape == (0, 3)
    assert column.gather([]).dtype == np.float32


def test_gathering_nothing_from_a_single_block_gives_nothing(tmp_path: Path) -> None:
    """The number of blocks does not show."""
    column = read(write(tmp_path / "art", [("train", numbered(5))], 9)).column("train", "vectors")
    assert column.gather([]).shape == (0, 3)


def test_blocks_are_maps_that_cannot_be_written(tmp_path: Path) -> None:
    """Reading loads nothing, and no reader can alter an artifact."""
    column = read(write(tmp_path / "art", [("train", numbered(5))], 2)).column("train", "vectors")
    assert isinstance(column, Column)
    for block in column.blocks():
        assert isinstance(block.base, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            block[0] = 1


def test_what_is_not_there_is_an_error_that_says_what_is(tmp_path: Path) -> None:
    """Splits and arrays by name; a split without rows is empty."""
    empty = {"x": np.zeros((0, 2))}
    root = write(tmp_path / "art", [("train", numbered(5)), ("validation", empty)])
    reader = read(root)
    with pytest.raises(ArtifactError, match=r"no split 'test', only \['train', 'validation'\]"):
        reader.rows("test")
    with pytest.raises(
        ArtifactError, match=r"no array 'x' in split 'train', only \['labels', 'vec"
    ):
        reader.column("train", "x")
    assert reader.rows("validation") == 0
    with pytest.raises(ArtifactError, match=r"split 'validation' of .* is empty"):
        reader.column("validation", "x")


def test_opening_names_the_maker_of_what_is_missing(tmp_path: Path) -> None:
    """As every artifact does."""
    with pytest.raises(
        ArtifactError, match="does not exist; it is made by the stage `make_vectors`"
    ):
        read(tmp_path / "absent")
    with pytest.raises(ArtifactError, match="expected 'images'"):
        ShardReader.open(write(tmp_path / "art", [("train", numbered(5))]), "images", MAKER)


# --- writing what cannot be written -----------------------------------------------------------------


def test_arrays_that_disagree_are_refused(tmp_path: Path) -> None:
    """Other numbers of rows, other names, dtypes or shapes than before, or no array at all."""
    writer = ShardWriter(tmp_path)
    with pytest.raises(ValueError, match=r"equally many rows, found \[2, 3\]"):
        writer.write("train", {"a": np.zeros(2), "b": np.zeros(3)})
    with pytest.raises(ValueError, match="equally many rows"):
        writer.write("train", {})
    writer.write("train", {"a": np.zeros((2, 3))})
    for other in (
        {"b": np.zeros((2, 3))},
        {"a": np.zeros((2, 4))},
        {"a": np.zeros((2, 3), dtype=np.float32)},
        {"a": np.zeros((2, 3)), "b": np.zeros(2)},
    ):
        with pytest.raises(ValueError, match="cannot append"):
            writer.write("train", other)
    writer.write("validation", {"b": np.zeros(1)})


def test_objects_are_not_written(tmp_path: Path) -> None:
    """They could only be pickled."""
    writer = ShardWriter(tmp_path, rows_per_block=1)
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        writer.write("train", {"x": np.array([{}, []], dtype=object)})


# --- damage under a valid manifest ------------------------------------------------------------------

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


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """Six rows in blocks of four: two blocks in one shard."""
    return write(tmp_path / "art", [("train", {"x": np.arange(12.0).reshape(6, 2)})])


def assert_refused(root: Path, *words: str) -> None:
    """The manifest is valid, yet the column cannot be opened; the message names the shard."""
    reader = read(root)
    with pytest.raises(ArtifactError) as caught:
        reader.column("train", "x")
    for word in (str(root), *words):
        assert word in str(caught.value)


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


class Bomb:
    """Unpickling it would raise, and be noticed."""

    def __reduce__(self) -> tuple[type[SystemExit], tuple[str]]:
        """Call SystemExit on loading."""
        return SystemExit, ("a pickle was loaded",)


def test_an_array_of_objects_is_refused_and_never_unpickled(artifact: Path) -> None:
    """Even where header and manifest agree that there are objects."""
    content = npy(np.zeros(0), descr="|O", shape=(4, 2)) + pickle.dumps([Bomb()] * 8)
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


def test_an_altered_shard_is_refused_when_opened(artifact: Path) -> None:
    """Without a new seal the hash gives it away."""
    content = bytearray((artifact / SHARD).read_bytes())
    content[700] ^= 1
    (artifact / SHARD).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{SHARD} is damaged"):
        read(artifact)


def test_more_blocks_than_a_process_may_open_files(tmp_path: Path) -> None:
    """A shard is mapped once, however many blocks it has."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    directory = tmp_path / "art"
    directory.mkdir()
    writer = ShardWriter(directory, rows_per_block=1)
    writer.write("train", {"vectors": numbered(600)["vectors"]})
    writer.close(kind="test", provenance={})
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        column = ShardReader.open(directory, "test", "the test").column("train", "vectors")
        assert np.array_equal(column.gather([599, 0, 300]), column.read()[[599, 0, 300]])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
