"""How close reconstructions are to their images; both in [-1, 1]."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

SSIM_WINDOW = 7


def psnr_db(
    restored: Float[Tensor, "b c h w"], images: Float[Tensor, "b c h w"]
) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of each clamped reconstruction in dB, data range 2."""
    error = (restored.clamp(-1, 1) - images).double().square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp(min=1e-12))


def ssim(
    restored: Float[Tensor, "b c h w"], images: Float[Tensor, "b c h w"]
) -> Float[Tensor, " b"]:
    """Structural similarity of each clamped reconstruction (scikit-image, window 7, data range 2)."""
    from skimage.metrics import structural_similarity

    pairs = zip(restored.clamp(-1, 1).double().cpu(), images.double().cpu(), strict=True)
    values = [
        structural_similarity(
            a.numpy(), b.numpy(), win_size=SSIM_WINDOW, data_range=2.0, channel_axis=0
        )
        for a, b in pairs
    ]
    return torch.from_numpy(np.asarray(values, dtype=np.float64))


def to_uint8(images: Float[Tensor, "b c h w"]) -> Tensor:
    """Images in [-1, 1] as bytes, rounded to the nearest of 256 levels."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def from_uint8(images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Bytes as images in [-1, 1]."""
    return images.float() / 127.5 - 1
