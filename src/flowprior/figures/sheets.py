"""Which images a person is shown: the first of each class, of reconstructions and of samples."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowprior.figures.grid import by_class, first_of_each, pick
from flowprior.images.pixels import to_uint8
from flowprior.images.sets import ImageSet

SHEET_COLUMNS = 4
"""Images of a class on a sheet, for each guidance or each with its reconstruction."""


def reconstruction_sheet(
    restore: Callable[[Tensor], Tensor], images: ImageSet
) -> NDArray[np.uint8]:
    """The first images of each class, each with its reconstruction behind it, [classes, columns, h, w, c]."""
    rows = first_of_each(images.labels, SHEET_COLUMNS)
    originals = images.images(rows)
    pair = [to_uint8(part) for part in (originals, restore(originals))]
    labels = images.labels[rows].repeat_interleave(2)
    return by_class(torch.stack(pair, 1).flatten(0, 1), labels, 2 * SHEET_COLUMNS)


def sample_panel(pieces: Iterable[Tensor], labels: Tensor, columns: int) -> NDArray[np.uint8]:
    """The first samples of each class, [classes, columns, h, w, c], from images [b, c, h, w] in bytes."""
    rows = first_of_each(labels, columns)
    return by_class(pick(pieces, rows), labels[rows], columns)


def real_panel(images: ImageSet, columns: int) -> NDArray[np.uint8]:
    """The first images of each class of a set, [classes, columns, h, w, c]."""
    rows = first_of_each(images.labels, columns)
    return by_class(to_uint8(images.images(rows)), images.labels[rows], columns)
