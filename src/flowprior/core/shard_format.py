"""Checks of the manifests and tar headers of shards that may come from strangers."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowprior.core.io import ArtifactError
from flowprior.core.tars import tar_members

Array = NDArray[Any]


def is_split(split: object) -> bool:
    """Whether a manifest's entry of a split has the form that `ShardWriter` gives it."""
    match split:
        case {"rows": int(), "fields": dict(fields), "blocks": list(blocks)}:
            return all(map(is_field, fields.values())) and all(map(is_block, blocks))
    return False


def is_field(field: object) -> bool:
    """Whether a split's entry of an array has a dtype and a shape."""
    match field:
        case {"dtype": str(), "shape": list(shape)}:
            return len(shape) < 32 and all(isinstance(n, int) and n >= 0 for n in shape)
    return False


def is_block(block: object) -> bool:
    """Whether a split's entry of a block names its tar, its key and its rows."""
    match block:
        case {"shard": str(), "key": str(), "rows": int(rows)}:
            return rows > 0
    return False


def tar_offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Name to (offset, size) of the regular files of a tar; anything else in it is an error.

    Raises:
        ArtifactError: The file is no tar, or something in it is no plain file.
    """
    infos = tar_members(path)
    for info in infos:
        if not info.isreg() or "/" in info.name:
            raise ArtifactError(f"{path} holds {info.name!r}, which is not a plain file of its own")
    return {info.name: (info.offset_data, info.size) for info in infos}


def map_npy(
    path: Path,
    mapped: Array,
    name: str,
    place: tuple[int, int],
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
) -> Array:
    """Map one `.npy` member, after checking that its header says what the manifest says.

    Raises:
        ArtifactError: It does not, or is no array of numbers.
    """
    offset, size = place
    with path.open("rb") as file:
        file.seek(offset)
        try:
            np.lib.format.read_magic(file)
            found = np.lib.format.read_array_header_1_0(file)
        except Exception as error:  # numpy parses it as Python and raises whatever that provokes
            raise ArtifactError(f"{path}: member {name!r} is not an .npy array: {error}") from None
        start = file.tell()
    if found != (shape, False, dtype):
        raise ArtifactError(
            f"{path}: member {name!r} holds {found}, expected {(shape, False, dtype)}"
        )
    if dtype.kind not in "biufc":
        raise ArtifactError(f"{path}: member {name!r} holds {dtype}, not numbers")
    if start - offset + math.prod(shape) * dtype.itemsize != size:
        raise ArtifactError(f"{path}: member {name!r} has {size} bytes, too few or too many")
    if not math.prod(shape):
        return np.empty(shape, dtype=dtype)
    return np.ndarray(shape, dtype=dtype, buffer=mapped, offset=start)
