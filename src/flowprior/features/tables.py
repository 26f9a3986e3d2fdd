"""Tables of vectors that exist already: a language model's input embeddings, a VQ codebook, one's own features."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from flowprior.core import rng
from flowprior.core.hub import tensor_names
from flowprior.core.io import file_digest
from flowprior.images.sets import Split

HELD_OUT = 10
"""One row of so many is held out."""
BLOCK = 8192
"""Rows of a table that are read at once, and of a Gaussian one that come from one generator."""


class Table(NamedTuple):
    """Rows of vectors that are read in pieces.

    Attributes:
        rows: Number of rows n.
        dim: Channels D.
        read: `read(start, stop)` gives float32 [stop - start, D].
        facts: What it is and the hash of the file it came from.
    """

    rows: int
    dim: int
    read: Callable[[int, int], Tensor]
    facts: dict[str, str]

    def pieces(self, split: Split, split_seed: int, size: int = BLOCK) -> Iterator[Tensor]:
        """The rows of a split in order, in pieces [at most `size`, d], float32."""
        held_out = held_out_rows(self.rows, split_seed)
        for start in range(0, self.rows, size):
            stop = min(start + size, self.rows)
            first, last = torch.searchsorted(held_out, torch.tensor([start, stop])).tolist()
            wanted = torch.full((stop - start,), split == "train")
            wanted[held_out[first:last] - start] = split == "validation"
            yield self.read(start, stop)[wanted]


def held_out_rows(n: int, split_seed: int) -> Int[Tensor, " m"]:
    """The fixed tenth of a table's rows that is held out: one of every ten in a row, ascending."""
    tens = n // HELD_OUT
    draw = rng.generator(split_seed, "table")
    return HELD_OUT * torch.arange(tens) + torch.randint(HELD_OUT, (tens,), generator=draw)


def gaussian_table(rows: int, dim: int, seed: int) -> Table:
    """`rows` draws from N(0, I) in `dim` dims, made when they are read; a row is the same however it is read."""

    def block(index: int) -> Tensor:
        draw = rng.generator(seed, "gaussian", index)
        return torch.randn(min(BLOCK, rows - index * BLOCK), dim, generator=draw)

    def read(start: int, stop: int) -> Tensor:
        first = start // BLOCK
        blocks = [block(index) for index in range(first, -(-stop // BLOCK))]
        return torch.cat(blocks)[start - first * BLOCK : stop - first * BLOCK]

    return Table(rows, dim, read, {"distribution": f"N(0, I) in {dim} dims"})


def file_table(path: str) -> Table:
    """One's own features [n, D]: a .npy, or a .safetensors with one matrix.

    Raises:
        ValueError: The file is absent, of another kind, or does not hold one matrix of numbers.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"prior.path {path!r} does not exist")
    facts = {"file": file.name, "sha256": file_digest(file)}
    if file.suffix == ".safetensors":
        keys = tensor_names(file)
        if len(keys) != 1:
            raise ValueError(f"{path} must hold one matrix [n, D], found the tensors {keys}")
        return safetensors_table(file, keys[0], facts)
    if file.suffix != ".npy":
        raise ValueError(f"{path} is neither .npy nor .safetensors")
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is not an .npy array of numbers: {error}") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is an .npz archive; save one array with np.save")
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise ValueError(
            f"{path} must hold a matrix [n, D] of numbers, found {array.dtype} {array.shape}"
        )

    def read(start: int, stop: int) -> Tensor:
        return torch.from_numpy(np.array(array[start:stop], dtype=np.float32))

    return Table(array.shape[0], array.shape[1], read, facts)


def safetensors_table(file: Path, key: str, facts: dict[str, str]) -> Table:
    """A tensor of a safetensors file as a table, read in pieces.

    Raises:
        ValueError: The tensor is no matrix of numbers.
    """

    def part() -> Any:
        from safetensors import safe_open

        return safe_open(file, framework="pt").get_slice(key)

    shape = part().get_shape()
    kind = part().get_dtype()
    if len(shape) != 2 or not kind.startswith(("F", "BF", "I", "U")):
        raise ValueError(f"{file}: {key} must be a matrix [n, D] of numbers, found {kind} {shape}")

    def read(start: int, stop: int) -> Tensor:
        rows: Tensor = part()[start:stop]
        return rows.float()

    return Table(shape[0], shape[1], read, facts)
