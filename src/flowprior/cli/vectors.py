"""Files of vectors, of the kinds that people have them in."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

READ = (".npy", ".npz", ".safetensors", ".csv", ".parquet")
WRITTEN = (".npy", ".safetensors")
STREAM = "-"
"""In place of a file: standard input or output, as .npy."""


def read_vectors(name: str) -> ndarray:
    """An array of numbers, [..., D], from a file.

    Args:
        name: A .npy; a .npz or .safetensors with one array; a .csv with a line of names, or a .parquet, of numbers;
            or `-`, a .npy from standard input.

    Raises:
        ValueError: There is no such file, it is of another kind, damaged, or holds several arrays or no numbers.
        ModuleNotFoundError: For .csv and .parquet, without the extra `metrics`.
    """
    if name == STREAM:
        return _numbers(_load(io.BytesIO(sys.stdin.buffer.read()), "standard input"), name)
    path = Path(name).expanduser()
    if path.suffix not in READ:
        raise ValueError(f"{name} is of no kind that is read: {', '.join(READ)}, or - for a stream")
    if not path.is_file():
        raise ValueError(f"{name} does not exist")
    if path.suffix == ".safetensors":
        return _numbers(_only(_safetensors(path), name), name)
    if path.suffix in (".csv", ".parquet"):
        return _numbers(_frame(path), name)
    return _numbers(_load(path, name), name)


def check_writable(name: str) -> None:
    """Whether `write_vectors` can write there, before anything is computed.

    Raises:
        ValueError: It cannot; says why.
    """
    if name == STREAM:
        return
    path = Path(name).expanduser()
    if path.suffix not in WRITTEN:
        raise ValueError(f"{name}: name a file {' or '.join(WRITTEN)}, or - for standard output")
    check_parent(path)


def check_parent(path: Path) -> None:
    """Whether there is a directory for a file.

    Raises:
        ValueError: There is not.
    """
    parent = path.expanduser().parent
    if not parent.is_dir():
        raise ValueError(f"{path}: the directory {parent} does not exist")


def write_vectors(name: str, vectors: ndarray) -> None:
    """Write an array as .npy or .safetensors (under the name `vectors`), or with `-` as .npy to standard output."""
    from flowprior.core.io import write_atomic

    check_writable(name)
    buffer = io.BytesIO()
    if name.endswith(".safetensors"):
        from safetensors.numpy import save

        buffer.write(save({"vectors": np.ascontiguousarray(vectors)}))
    else:
        np.save(buffer, vectors, allow_pickle=False)
    if name == STREAM:
        sys.stdout.buffer.write(buffer.getvalue())
    else:
        write_atomic(Path(name).expanduser(), buffer.getvalue())


def _load(source: Any, name: str) -> ndarray:
    try:
        found = np.load(source, allow_pickle=False)
        if isinstance(found, ndarray):
            return found
        return _only({key: found[key] for key in found.files}, name)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{name} cannot be read as an array: {error}") from None


def _safetensors(path: Path) -> dict[str, ndarray]:
    from flowprior.core.io import load_tensors

    return {key: tensor.float().numpy() for key, tensor in load_tensors(path).items()}


def _only(arrays: dict[str, ndarray], name: str) -> ndarray:
    if len(arrays) != 1:
        raise ValueError(
            f"{name} holds {len(arrays)} arrays ({', '.join(sorted(arrays)) or 'none'}), one is needed"
        )
    return next(iter(arrays.values()))


def _frame(path: Path) -> ndarray:
    import pandas

    try:
        read = pandas.read_csv if path.suffix == ".csv" else pandas.read_parquet
        return np.asarray(read(path))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from None


def _numbers(array: ndarray, name: str) -> ndarray:
    if array.dtype.kind not in "biuf" or array.ndim < 2 or not array.size:
        raise ValueError(
            f"{name} holds {array.dtype} of shape {list(array.shape)}, expected numbers [..., D]"
        )
    return array
