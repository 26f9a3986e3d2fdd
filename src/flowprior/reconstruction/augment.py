"""Differentiable augmentation of what a discriminator sees: colour, translation, cutout.

DiffAugment, arXiv:2006.10738. What is drawn and what is done are apart, so that an image and its
reconstruction can be changed alike.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from flowprior.core.rng import Draw


class Policy(NamedTuple):
    """How strong an augmentation is.

    Attributes:
        probability: Of each of the three changes, for the whole batch.
        translation: Largest shift, as a share of the side.
        cutout: Side of the square that is blanked, as a share of the image's.
    """

    probability: float
    translation: float
    cutout: float


WEAK = Policy(0.5, 0.125, 0.2)
STRONG = Policy(1.0, 0.125, 0.5)


class Augmentation(NamedTuple):
    """Numbers in [0, 1) for each image; None where the change was not drawn for this batch.

    Attributes:
        policy: What they were drawn for.
        colour: Brightness, saturation and contrast, [b, 3].
        shift: Down and to the right, [b, 2].
        hole: The centre of the cutout, [b, 2].
    """

    policy: Policy
    colour: Tensor | None
    shift: Tensor | None
    hole: Tensor | None


def draw_augmentation(policy: Policy, draw: Draw) -> Augmentation:
    """Draw for the global batch, keep this rank's part; it takes as many draws whatever the policy."""
    coins = torch.rand(3, generator=draw.generator).tolist()
    numbers = [torch.rand(draw.batch, k, generator=draw.generator) for k in (3, 2, 2)]
    colour, shift, hole = (
        draw.share(part, 0) if coin < policy.probability else None
        for coin, part in zip(coins, numbers, strict=True)
    )
    return Augmentation(policy, colour, shift, hole)


def augment(
    images: Float[Tensor, "b c H W"], augmentation: Augmentation
) -> Float[Tensor, "b c H W"]:
    """Images in [-1, 1] changed as drawn; gradients pass."""
    policy, colour, shift, hole = augmentation
    if colour is not None:
        images = _recolour(images, colour)
    if shift is not None:
        images = _translate(images, shift, policy.translation)
    if hole is not None:
        images = _cut(images, hole, policy.cutout)
    return images


def _recolour(images: Tensor, numbers: Tensor) -> Tensor:
    """Brightness by up to +-0.5, saturation by 0 to 2, contrast by 0.5 to 1.5."""
    brightness, saturation, contrast = numbers.to(images.dtype).view(-1, 3, 1, 1, 1).unbind(1)
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    level = images.mean((1, 2, 3), keepdim=True)
    return level + (images - level) * (contrast + 0.5)


def _translate(images: Tensor, numbers: Tensor, share: float) -> Tensor:
    """Shift by whole pixels; what comes in from outside is 0."""
    for dim, number in ((2, numbers[:, :1]), (3, numbers[:, 1:])):
        side = images.shape[dim]
        most = round(side * share)
        offset = (number * (2 * most + 1)).floor().long() - most
        source = torch.arange(side, device=images.device) - offset  # b side
        shape = (-1, 1, side, 1) if dim == 2 else (-1, 1, 1, side)
        inside = ((source >= 0) & (source < side)).view(shape)
        images = torch.take_along_dim(images, source.clamp(0, side - 1).view(shape), dim) * inside
    return images


def _cut(images: Tensor, numbers: Tensor, share: float) -> Tensor:
    """Blank a square to 0; at the border it is clipped."""
    within = []
    for dim, number in ((2, numbers[:, :1]), (3, numbers[:, 1:])):
        side = images.shape[dim]
        size = round(side * share)
        first = (number * (side + 1 - size % 2)).floor() - size // 2
        place = torch.arange(side, device=images.device)
        within.append((place >= first) & (place < first + size))  # b side
    return images * ~(within[0].unsqueeze(2) & within[1].unsqueeze(1)).unsqueeze(1)
