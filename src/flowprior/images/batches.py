"""Random batches of images for training."""

from collections.abc import Callable

import torch
from torch import Tensor

from flowprior.images.sets import ImageSet


def random_batches(
    images: ImageSet, size: int, cropped: bool, share: Callable[[Tensor], Tensor]
) -> Callable[[torch.Generator], Tensor]:
    """A function of a step's generator that gives this rank's part [b, c, h, w] of a batch.

    Args:
        images: Drawn from with replacement.
        size: Of the global batch.
        cropped: Whether each image is a random crop, mirrored half of the time; see `decoding.decode`.
        share: Takes this rank's part of what is drawn for all.
    """

    def load(draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (size,), generator=draw)
        crops = share(torch.rand(size, 4, generator=draw)).cpu() if cropped else None
        return images.images(share(rows).cpu(), crops)

    return load
