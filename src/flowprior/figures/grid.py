"""Contact sheets: a row of images for each class, as small PNGs that can be compared across experiments.

Which images is fixed: the first of each class. Nothing is drawn but pixels, so that a page can scale
and label them.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

NUM_ROWS = 10
LARGEST = 64
"""Pixels along a side of an image on a sheet; larger ones are shrunk."""
GREY = 160


def first_of_each(labels: Tensor, columns: int) -> Tensor:
    """Rows of the first few images of the first ten classes, ascending."""
    rows = [(labels == label).nonzero()[:columns, 0] for label in range(NUM_ROWS)]
    return torch.cat(rows).sort().values


def pick(pieces: Iterable[Tensor], rows: Tensor) -> Tensor:
    """Images by ascending rows out of pieces that come in order; none is asked for behind the last."""
    picked = []
    start = 0
    for piece in pieces:
        picked.append(piece[rows[(rows >= start) & (rows < start + len(piece))] - start])
        start += len(piece)
        if start > rows[-1]:
            break
    return torch.cat(picked)


def by_class(images: Tensor, labels: Tensor, columns: int) -> NDArray[np.uint8]:
    """Images [n, c, h, w] by class, [classes, columns, h, w, c]; grey where there are too few.

    Args:
        images: In bytes.
        labels: Of them; classes from `NUM_ROWS` on are left out.
        columns: Of a row.
    """
    pages = images.permute(0, 2, 3, 1).numpy()
    num_rows = min(NUM_ROWS, int(labels.max()) + 1)
    grid = np.full((num_rows, columns, *pages.shape[1:]), GREY, dtype=np.uint8)
    for label in range(num_rows):
        chosen = pages[(labels == label).numpy()][:columns]
        grid[label, : len(chosen)] = chosen
    return grid


def tile(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[rows, columns, h, w, c] as one picture with grey lines between the images; [h, w] where there is one channel."""
    rows, columns, h, w, c = images.shape
    page = np.full((rows * (h + 1) + 1, columns * (w + 1) + 1, c), GREY, dtype=np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (h + 1) + 1, column * (w + 1) + 1
            page[top : top + h, left : left + w] = images[row, column]
    return page[..., 0] if c == 1 else page


def save_sheet(images: NDArray[np.uint8], path: Path) -> None:
    """Write a sheet as PNG, a pixel for a pixel up to `LARGEST` along an image's side."""
    page = Image.fromarray(tile(images))
    longest = max(images.shape[2:4])
    if longest > LARGEST:
        share = LARGEST / longest
        page = page.resize((round(page.width * share), round(page.height * share)), Image.BOX)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, optimize=True)
