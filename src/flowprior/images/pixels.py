"""Images in [-1, 1] and images in bytes."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def to_uint8(images: Float[Tensor, "b c h w"]) -> Tensor:
    """Images in [-1, 1] as bytes, rounded to the nearest of 256 levels."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def from_uint8(images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Bytes as images in [-1, 1]."""
    return images.float() / 127.5 - 1
