"""What was written comes back, in any order asked for."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowprior.core.io import ArtifactError
from flowprior.core.shard_writer import ShardWriter
from flowprior.core.shards import Column, ShardReader

from .written import BLOCKS, MAKER, PROPERTY, SHARD, numbered, read, write


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


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """Six rows in blocks of four: two blocks in one shard."""
    return write(tmp_path / "art", [("train", {"x": np.arange(12.0).reshape(6, 2)})])


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
