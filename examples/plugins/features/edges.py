"""A source of features of one's own: differences between neighbouring pixels, patch by patch."""

from collections.abc import Iterator

import torch
from torch import Tensor

from flowprior.core.io import digest
from flowprior.features.of_images import image_features, pixel_patches
from flowprior.features.source import Request, Source
from flowprior.images.sets import SPLITS, Split


def edge_tokens(images: Tensor) -> Tensor:
    """Images [b, c, h, w] to tokens [b, p, D]: 4 x 4 patches of the horizontal and the vertical differences."""
    right = images.diff(dim=-1, append=images[..., -1:])
    down = images.diff(dim=-2, append=images[..., -1:, :])
    return pixel_patches(torch.cat([right, down], dim=1))


def edges(request: Request, held_out_share: int = 10) -> Source:
    """What the pipeline calls; keyword arguments are those of `prior.options`."""
    limits = request.limits

    def pieces(split: Split) -> Iterator[Tensor]:
        return image_features(
            request.images[split],
            edge_tokens,
            batch_images=limits.batch_images,
            max_vectors=limits.max_vectors // (1 if split == "train" else held_out_share),
            seed=request.seed,
        )

    made_of = {f"{split}_images": request.images[split].digest for split in SPLITS}
    facts = {"features": "differences of neighbouring pixels", **made_of}
    return Source(pieces, digest(facts), facts, request.images)
