"""The latents of a diffusers AutoencoderKL, pulled by a prior while it is fine-tuned.

    python examples/diffusers_vae.py                      seconds, with small random weights and random images
    python examples/diffusers_vae.py --vae stabilityai/sd-vae-ft-mse --images folder    with real ones

Needs flowprior[imagenet].
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from flowprior import FlowPrior

SIZE = 64


def small_vae() -> AutoencoderKL:
    """The architecture, at a size that needs no download."""
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=SIZE,
    )


def images_of(folder: Path | None) -> Tensor:
    """Images of a folder, or noise, [n, 3, SIZE, SIZE] in [-1, 1]."""
    if folder is None:
        return torch.rand(64, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    from PIL import Image
    from torchvision.transforms.functional import center_crop, resize, to_tensor

    opened = (Image.open(path).convert("RGB") for path in sorted(folder.iterdir()))
    return (
        torch.stack([to_tensor(center_crop(resize(x, SIZE), [SIZE, SIZE])) for x in opened]) * 2 - 1
    )


def main() -> None:
    """Fit a prior to features, fine-tune with its pull, and say what became of the latents."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vae", help="a model of the hub, or a folder")
    parser.add_argument("--images", type=Path, help="a folder of images")
    parser.add_argument("--steps", type=int, default=20)
    asked = parser.parse_args()
    vae = AutoencoderKL.from_pretrained(asked.vae) if asked.vae else small_vae()
    images = images_of(asked.images)
    features = torch.randn(
        4000, 64, generator=torch.Generator().manual_seed(1)
    )  # yours: DINOv2's patch tokens, say
    prior = FlowPrior.fit(features, dim=vae.config.latent_channels, steps=200, width=64, depth=2)
    pull = prior.objective("dmd", channel_dim=1, weight=0.1)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-4)
    for step in range(asked.steps):
        batch = images[torch.randint(len(images), (8,))]
        posterior = vae.encode(batch).latent_dist
        latents = posterior.sample()
        loss = (vae.decode(latents).sample - batch).square().mean() + pull(latents)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pull.follow(latents)
        print(f"step {step + 1}  loss {loss.item():.4f}", flush=True)
    with torch.no_grad():
        latents = vae.encode(images[:8]).latent_dist.mean
    print(prior.check(latents, channel_dim=1))


if __name__ == "__main__":
    main()
