"""Images in the `.npz` that evaluators of others read (ADM's layout: `arr_0`, bytes [n, h, w, c]), piece by piece."""

import io
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.lib import format as npy
from torch import Tensor

from flowprior.core.io import regular_size

IMAGES = "arr_0"
DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, EOFError)
MAX_HEADER_BYTES = 2**14
"""Numpy reads headers of up to 10 000 characters."""
MAX_IMAGE_BYTES = 2**28
MAX_INFLATION = 1100
"""What deflate can make of a byte is a little less."""
Header = tuple[tuple[int, ...], bool, np.dtype[Any]]
"""Shape, whether in Fortran's order, and type."""


def write_npz(
    path: Path, pieces: Iterable[UInt8[Tensor, "_ c h w"]], labels: Int64[Tensor, " n"]
) -> None:
    """Write images as they come, and their labels: the bytes of `numpy.savez`, with one piece in memory.

    Raises:
        ValueError: There are not as many images as labels, or they differ in shape.
    """
    with zipfile.ZipFile(path, "w") as archive:
        shape: tuple[int, ...] | None = None
        written = 0
        with archive.open(f"{IMAGES}.npy", "w", force_zip64=True) as file:
            for piece in pieces:
                block = np.ascontiguousarray(piece.permute(0, 2, 3, 1).numpy())
                if shape is None:
                    shape = block.shape[1:]
                    header = {"descr": "|u1", "fortran_order": False}
                    npy.write_array_header_1_0(file, header | {"shape": (len(labels), *shape)})
                elif block.shape[1:] != shape:
                    raise ValueError(f"images of {shape} are followed by images of {block.shape}")
                file.write(block.data)
                written += len(block)
        if written != len(labels):
            raise ValueError(f"{path}: {written} images for {len(labels)} labels")
        with archive.open("labels.npy", "w", force_zip64=True) as file:
            npy.write_array(file, labels.numpy(), allow_pickle=False)


class NpzImages:
    """The images of an `.npz`, read from its beginning in pieces; nothing in it is unpickled.

    Attributes:
        channels: 1 or 3.
        size: Height and width.

    Raises:
        ValueError: The file is not such an `.npz`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        file, (shape, fortran_order, dtype) = self._open()
        file.close()
        if dtype != np.uint8 or len(shape) != 4 or fortran_order or shape[3] not in (1, 3):
            raise ValueError(
                f"{path}: {IMAGES} must be uint8 [n, h, w, 1 or 3] in C order, found {dtype} {list(shape)}"
            )
        self._count, *self.size, self.channels = shape
        if self._count < 0 or min(self.size) < 1 or math.prod(shape[1:]) > MAX_IMAGE_BYTES:
            raise ValueError(f"{path}: {IMAGES} has the shape {list(shape)}")
        if self._count > (most := path.stat().st_size * MAX_INFLATION):
            raise ValueError(
                f"{path} ends before image {self._count}: it cannot hold more than {most} bytes"
            )

    def __len__(self) -> int:
        return self._count

    def pieces(self, batch: int) -> Iterator[UInt8[Tensor, "_ c h w"]]:
        """All images in order, at most `batch` at a time.

        Raises:
            ValueError: The file ends early or is damaged.
        """
        shape = (*self.size, self.channels)
        with self._open()[0] as file:
            for start in range(0, self._count, batch):
                rows = min(batch, self._count - start)
                wanted = rows * math.prod(shape)
                try:
                    content = file.read(wanted)
                except DAMAGE as error:
                    raise ValueError(f"{self._path} is damaged: {error}") from None
                if len(content) != wanted:
                    raise ValueError(
                        f"{self._path} ends before image {start + rows} of {self._count}"
                    )
                block = np.frombuffer(content, dtype=np.uint8).reshape(rows, *shape)
                yield torch.from_numpy(block.transpose(0, 3, 1, 2).copy())

    def _open(self) -> tuple[io.BufferedIOBase, Header]:
        """The member behind its header."""
        try:
            regular_size(self._path)
            archive = zipfile.ZipFile(self._path)
            with archive.open(f"{IMAGES}.npy") as member:
                start = io.BytesIO(member.read(MAX_HEADER_BYTES))
            version = npy.read_magic(start)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            header = read(start)
            file = cast(io.BufferedIOBase, archive.open(f"{IMAGES}.npy"))
            file.read(start.tell())
            return file, header
        except Exception as error:  # zipfile and numpy raise whatever the damaged bytes provoke
            raise ValueError(f"{self._path} is not an .npz with {IMAGES}: {error}") from None
