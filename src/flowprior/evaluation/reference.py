"""The real images that samples are compared with: the held-out ones, a folder's, or ADM's `.npz`."""

import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowprior.core.io import digest, file_digest
from flowprior.evaluation.inception import Features, published
from flowprior.evaluation.judge import images_in_bytes
from flowprior.evaluation.npz import IMAGES, NpzImages
from flowprior.images.decoding import EXTENSIONS, decode
from flowprior.images.pixels import to_uint8
from flowprior.images.sets import ImageSet, batches


class Reference(NamedTuple):
    """Real images, not yet looked at.

    Attributes:
        digest: Fixes which they are; None where there are moments alone.
        num_images: How many.
        pieces: They, in bytes.
        moments: Of pool features, where the file gives them.
    """

    digest: str | None
    num_images: int
    pieces: Iterable[Tensor]
    moments: Features | None


def open_reference(path: str | None, held_out: ImageSet, size: int, batch: int) -> Reference:
    """The held-out images, those of a folder, or ADM's `.npz` with `mu` and `sigma`, `arr_0`, or both.

    Raises:
        ValueError: The path is neither, or holds images of another size than the samples.
    """
    if path is None:
        return Reference(held_out.digest, len(held_out), images_in_bytes(held_out, batch), None)
    where = Path(path)
    if where.is_dir():
        files = sorted(file for file in where.rglob("*") if file.suffix.lower() in EXTENSIONS)
        if not files:
            raise ValueError(
                f"evaluation.reference {path} holds no images ({' '.join(EXTENSIONS)})"
            )
        listing = [[file.relative_to(where).as_posix(), file.stat().st_size] for file in files]
        return Reference(
            digest(["folder", size, listing]), len(files), _bytes_in(files, size, batch), None
        )
    if where.suffix != ".npz" or not where.is_file():
        raise ValueError(f"evaluation.reference {path} is neither a folder nor an .npz that exists")
    keys, moments = _read_moments(where)
    if IMAGES not in keys:
        if moments is None:
            raise ValueError(
                f"evaluation.reference {path} has the keys {keys}; expected mu and sigma, {IMAGES}, or all"
            )
        return Reference(None, 0, (), moments)
    images = NpzImages(where)
    if images.channels != 3 or images.size != [size, size]:
        raise ValueError(
            f"evaluation.reference {path} holds images of {images.size} with {images.channels} "
            f"channels, the samples are [{size}, {size}] with 3"
        )
    return Reference(file_digest(where), len(images), images.pieces(batch), moments)


def _read_moments(path: Path) -> tuple[list[str], Features | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not {"mu", "sigma"} <= set(file.files):
                return file.files, None
            mean, covariance = (torch.from_numpy(file[key]) for key in ("mu", "sigma"))
            keys = file.files
    except (zipfile.BadZipFile, OSError, ValueError, TypeError) as error:
        raise ValueError(f"evaluation.reference {path} cannot be read: {error}") from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"evaluation.reference {path}: mu {list(mean.shape)} and sigma {list(covariance.shape)} "
            "are not a mean [D] and a covariance [D, D]"
        )
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError(f"evaluation.reference {path}: mu or sigma is not finite")
    return keys, published(mean, covariance)


def _bytes_in(files: list[Path], size: int, batch: int) -> Iterator[Tensor]:
    for piece in batches(len(files), batch):
        images = [decode(files[row].read_bytes(), size, str(files[row])) for row in piece]
        yield to_uint8(torch.stack(images))
