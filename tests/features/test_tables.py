"""Tables of vectors: formats, the fixed split of their rows, and what is refused."""

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from flowprior.core import rng
from flowprior.core.io import file_digest
from flowprior.features.tables import (
    BLOCK,
    HELD_OUT,
    Table,
    file_table,
    gaussian_table,
    held_out_rows,
)

PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)


MATRIX = torch.randn(50, 3, generator=rng.generator(0, "matrix"))


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


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Which files, at which revision, the hub was asked for."""
    calls = []
    real = huggingface_hub.hf_hub_download

    def download(repository: str, name: str, *, revision: str | None) -> str:
        calls.append((name, revision))
        return str(real(repository, name, revision=revision))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return calls


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


def test_rows_that_are_held_out_are_spread_over_the_table() -> None:
    """One of every ten in a row, at any of the ten places."""
    found = held_out_rows(1000, 0)
    assert torch.equal(found // 10, torch.arange(100))
    assert set((found % 10).tolist()) == set(range(10))


def test_gaussian_rows_are_the_same_however_they_are_read() -> None:
    """And standard normal, other ones for another seed."""
    rows = 2 * BLOCK + 100
    table = gaussian_table(rows, 3, 0)
    whole = table.read(0, rows)
    assert whole.shape == (rows, 3) == (table.rows, table.dim)
    for start, stop in ((0, 1), (BLOCK - 1, BLOCK + 1), (5, 2 * BLOCK), (rows - 1, rows)):
        assert torch.equal(table.read(start, stop), whole[start:stop])
    assert len(whole.unique(dim=0)) == rows
    torch.testing.assert_close(whole.mean(0), torch.zeros(3), atol=0.04, rtol=0.0)
    torch.testing.assert_close(whole.T.cov(), torch.eye(3), atol=0.05, rtol=0.0)
    assert not torch.equal(gaussian_table(rows, 3, 1).read(0, 9), whole[:9])


def test_no_more_is_read_at_once_than_a_piece() -> None:
    """A vocabulary of a million rows need not fit into memory."""
    asked = []

    def read(start: int, stop: int) -> Tensor:
        asked.append((start, stop))
        return torch.zeros(stop - start, 2)

    list(Table(25, 2, read, {}).pieces("train", 0, 10))
    assert asked == [(0, 10), (10, 20), (20, 25)]
