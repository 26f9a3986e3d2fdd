"""Files of vectors that people bring."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
from numpy import ndarray
from safetensors.numpy import save_file

from flowprior.cli.vectors import check_writable, read_vectors, write_vectors

X = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("x.npy", lambda path: np.save(path, X)),
        ("x.npz", lambda path: np.savez(path, features=X)),
        ("x.safetensors", lambda path: save_file({"features": X}, path)),
        ("x.csv", lambda path: pandas.DataFrame(X.astype(float)).to_csv(path, index=False)),
    ],
)
def test_an_array_is_read_from_files_of_every_kind(
    tmp_path: Path, name: str, write: Callable[[Path], object]
) -> None:
    write(tmp_path / name)
    np.testing.assert_allclose(read_vectors(str(tmp_path / name)), X, rtol=1e-6)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """With values of any shape."""
    for name in ("y.npy", "y.safetensors"):
        write_vectors(str(tmp_path / name), X)
        assert np.array_equal(read_vectors(str(tmp_path / name)), X)


def test_streams_are_npy(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=written))
    write_vectors("-", X)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(written.getvalue())))
    assert np.array_equal(read_vectors("-"), X)


def pickled(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("x.npy", None, r"x\.npy does not exist"),
        ("x.txt", lambda path: path.write_text("1 2"), "of no kind that is read"),
        ("x.npy", lambda path: path.write_bytes(b"\x93NUMPY"), "cannot be read as an array"),
        ("x.npy", pickled, "cannot be read as an array"),
        ("x.npy", lambda path: np.save(path, X[0]), r"shape \[3\], expected numbers"),
        ("x.npy", lambda path: np.save(path, np.array([["a"]])), "expected numbers"),
        ("x.npy", lambda path: np.save(path, X[:0]), r"shape \[0, 3\]"),
        ("x.npz", lambda path: np.savez(path, a=X, b=X), r"2 arrays \(a, b\), one is needed"),
        ("x.safetensors", lambda path: save_file({"a": X, "b": X}, path), "one is needed"),
        ("x.csv", lambda path: path.write_text("a,b\n1,x\n"), "expected numbers"),
        ("x.csv", lambda path: path.write_text(""), "cannot be read as a table"),
    ],
)
def test_what_is_no_array_of_numbers_is_an_error(
    tmp_path: Path, name: str, write: Callable[[Path], object] | None, message: str
) -> None:
    if write is not None:
        write(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        read_vectors(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "message"), [("y.csv", "name a file"), ("nowhere/y.npy", "does not exist")]
)
def test_where_nothing_can_be_written_is_told(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_writable(str(tmp_path / name))


def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "y.npy"
    write_vectors(str(path), X)

    def full(array: ndarray, *_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="no space left"):
        write_vectors(str(path), X + 1)
    assert np.array_equal(read_vectors(str(path)), X)
