"""Rows survive, whatever the pieces, blocks and shards; equal rows are equal bytes."""

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given

from flowprior.core.artifacts import MANIFEST
from flowprior.core.io import read_json
from flowprior.core.shard_writer import ShardWriter, to_float16

from .written import BLOCKS, KIND, PROPERTY, SHARD, SHARDS, SIZES, cut, numbered, read, write


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


@pytest.mark.parametrize(
    ("mean", "std", "share"),
    [(5000, 1, 1.0), (30, 0.01, 0.4), (-2000, 2, 0.15)],
)
def test_rounding_that_eats_the_spread_is_refused(mean: float, std: float, share: float) -> None:
    """Of any one channel, with its number and what to do."""
    vectors = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0))
    vectors[:, 2] = vectors[:, 2] * std + mean
    with pytest.raises(ValueError, match=r"spread of channel 2 .*; subtract the mean") as told:
        to_float16(vectors)
    assert share / 2 < int(str(told.value).split("%")[0].split()[-1]) / 100 < 2 * share


def test_numbers_that_are_all_tiny_are_refused() -> None:
    """They would all be 0."""
    vectors = 1e-9 * torch.randn(5000, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="rounding would be 100% of the spread"):
        to_float16(vectors)


@pytest.mark.parametrize(
    ("mean", "std"), [(0, 1), (20, 1), (100, 2), (5000.3, 0), (0, 1e-4), (0, 2e3)]
)
def test_rounding_that_is_small_beside_the_spread_is_not(mean: float, std: float) -> None:
    """Nor is a channel that does not vary."""
    draw = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0))
    vectors = draw * std + mean
    back = torch.from_numpy(to_float16(vectors.view(50, 100, 4))).view(5000, 4).float()
    assert float((back - vectors).std()) <= 0.05 * std or not std


@pytest.mark.parametrize("spread", [0.0, 1e-7, 1e-5])
def test_a_channel_that_carries_nothing_loses_nothing(spread: float) -> None:
    """Float noise about a constant: of a feature that is off, or of a latent that collapsed onto its bias."""
    vectors = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    vectors[:, 3] = 0.3 + spread * vectors[:, 3]
    assert to_float16(vectors).shape == (200, 8)


def test_of_a_few_rows_rounding_is_not_judged() -> None:
    assert to_float16(torch.full((3, 2), 2049.0)).tolist() == [[2048.0, 2048.0]] * 3


@pytest.mark.parametrize(("value", "what"), [(torch.nan, "NaN or infinite"), (7e4, "cannot hold")])
def test_numbers_that_float16_has_not_are_refused(value: float, what: str) -> None:
    vectors = torch.zeros(40, 2)
    vectors[7, 1] = value
    with pytest.raises(ValueError, match=what):
        to_float16(vectors)
