"""The image grid: images row by row or class by class on a grey page, as an array, a picture or a small PNG.

Contact sheets of experiments show the same images (the first of each class) everywhere, and nothing but pixels,
so that a page can scale and label them.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

MAX_CLASSES = 10
LARGEST = 64
"""Pixels along a side of an image on a contact sheet; larger ones are shrunk."""
GREY = 160


def first_of_each(labels: Tensor, columns: int) -> Tensor:
    """Indices of the first few images of each of the first `MAX_CLASSES` classes that there are, ascending."""
    rows = [(labels == label).nonzero()[:columns, 0] for label in shown_classes(labels)]
    return torch.cat(rows).sort().values


def shown_classes(labels: Tensor) -> list[int]:
    """The first `MAX_CLASSES` classes that there are, ascending."""
    found: list[int] = labels.unique()[:MAX_CLASSES].tolist()
    return found


def pick(pieces: Iterable[Tensor], rows: Tensor) -> Tensor:
    """Images at ascending indices out of batches that come in order; no batch behind the last one is asked for."""
    picked = []
    start = 0
    for piece in pieces:
        picked.append(piece[rows[(rows >= start) & (rows < start + len(piece))] - start])
        start += len(piece)
        if start > rows[-1]:
            break
    return torch.cat(picked)


def by_row(images: Tensor, columns: int) -> NDArray[np.uint8]:
    """Images [n, c, h, w] in bytes as [rows, columns, h, w, c], row by row; grey behind the last, a row at least."""
    pixels = images.permute(0, 2, 3, 1).numpy()
    rows = max(1, -(-len(pixels) // columns))
    grid = np.full((rows * columns, *pixels.shape[1:]), GREY, dtype=np.uint8)
    grid[: len(pixels)] = pixels
    return grid.reshape(rows, columns, *pixels.shape[1:])


def by_class(images: Tensor, labels: Tensor, columns: int) -> NDArray[np.uint8]:
    """Images [n, c, h, w] in bytes as [classes, columns, h, w, c]: a row for a class, grey where it has too few.

    They are the first `MAX_CLASSES` that there are.
    """
    rows = [images[labels == one][:columns] for one in shown_classes(labels)]
    return np.concatenate([by_row(row, columns) for row in rows])


def tile(grid: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[rows, columns, h, w, c] as one page with grey lines between images; [height, width] if there is one channel."""
    rows, columns, h, w, c = grid.shape
    edged = np.pad(grid, ((0, 0), (0, 0), (1, 0), (1, 0), (0, 0)), constant_values=GREY)
    page = edged.swapaxes(1, 2).reshape(rows * (h + 1), columns * (w + 1), c)
    page = np.pad(page, ((0, 1), (0, 1), (0, 0)), constant_values=GREY)
    return page[..., 0] if c == 1 else page


def picture(grid: NDArray[np.uint8], smallest: int = 1) -> Image.Image:
    """A grid [rows, columns, h, w, c] as a picture.

    Args:
        grid: In bytes.
        smallest: Images of a smaller width are enlarged, by a whole factor, to no more than it.
    """
    zoom = max(1, smallest // grid.shape[3])
    return Image.fromarray(tile(grid.repeat(zoom, 2).repeat(zoom, 3)))


def save_sheet(grid: NDArray[np.uint8], path: Path) -> None:
    """Write a contact sheet as PNG, a pixel for a pixel up to `LARGEST` along an image's side."""
    page = picture(grid)
    longest = max(grid.shape[2:4])
    if longest > LARGEST:
        share = LARGEST / longest
        page = page.resize(
            (round(page.width * share), round(page.height * share)), Image.Resampling.BOX
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, optimize=True)
