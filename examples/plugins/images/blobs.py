"""A source of images of one's own: a round blob for each image, its quadrant is its class."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowprior.core import rng
from flowprior.core.io import digest
from flowprior.images.sets import Split, split_rows


class Blobs:
    """See `flowprior.images.sets.ImageSet`."""

    num_classes = 4
    class_names = ("upper left", "upper right", "lower left", "lower right")
    channels = 1

    def __init__(self, split: Split, split_seed: int, size: int, count: int) -> None:
        labels = torch.arange(count) % self.num_classes
        rows = split_rows(labels, split, split_seed)
        draw = rng.generator(0, "blobs")
        quadrant = torch.stack([labels // 2, labels % 2], dim=1)
        centres = size * (0.5 * quadrant + 0.1 + 0.3 * torch.rand(count, 2, generator=draw))
        axis = torch.arange(size) + 0.5
        y, x = (axis - centres[:, i, None] for i in range(2))
        squared = y[:, :, None] ** 2 + x[:, None, :] ** 2
        self._pixels = (2 * torch.exp(-squared / (0.1 * size) ** 2) - 1)[rows, None]
        self.labels = labels[rows]
        self.digest = digest(["blobs", size, count, rows.tolist()])
        self.corrupt: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, rows: Sequence[int] | Tensor, crops: Tensor | None = None) -> Tensor:
        """Images [b, 1, size, size] in [-1, 1]."""
        if crops is not None:
            raise ValueError("blobs fill their pixels; they are not cropped")
        return self._pixels[torch.as_tensor(rows)]


def open_blobs(split: Split, *, split_seed: int, size: int, count: int = 400, **_: Any) -> Blobs:
    """What the pipeline calls; further keyword arguments are those of `images.options`."""
    return Blobs(split, split_seed, size, count)
