"""How close reconstructions are to their images; both in [-1, 1]."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowprior.evaluation.judge import Judge
from flowprior.images.pixels import from_uint8, to_uint8
from flowprior.images.sets import ImageSet, batches

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


@torch.no_grad()
def reconstruction_metrics(
    restore: Callable[[Tensor], Tensor],
    images: ImageSet,
    judge: Judge,
    batch: int,
    *,
    as_bytes: bool,
) -> dict[str, float | None]:
    """PSNR, SSIM and, where there is a judge, the Fréchet distance of held-out reconstructions.

    With `as_bytes`, SoftVQ's protocol: all figures are of the reconstruction as a picture has it,
    rounded to 256 levels.
    """
    psnrs, ssims = [], []

    def restored() -> Iterator[Tensor]:
        for piece in batches(len(images), batch):
            original = images.images(piece)
            output = restore(original)
            rounded = to_uint8(output)
            output = from_uint8(rounded) if as_bytes else output
            psnrs.append(psnr_db(output, original))
            ssims.append(ssim(output, original))
            yield rounded

    distances = judge.judge(restored())
    return {
        **{f"r{name}": value for name, value in distances.items()},
        "psnr_db": float(torch.cat(psnrs).mean()),
        "ssim": float(torch.cat(ssims).mean()),
        "lpips": None,  # VGG's five poolings leave nothing of 8 x 8 pixels
    }
