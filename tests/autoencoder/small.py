"""A small autoencoder."""

import torch
from torch import Tensor, nn

from flowprior.autoencoder.bottleneck import Codebooks
from flowprior.autoencoder.shape import Shape
from flowprior.autoencoder.vit import Autoencoder, build_autoencoder
from flowprior.core import rng

SMALL = Shape(
    image_size=8,
    channels=2,
    patch_size=2,
    num_latents=5,
    latent_dim=3,
    width=16,
    depth=1,
    num_heads=2,
)


def normal(*shape: int, tag: str = "x") -> Tensor:
    """Fixed standard normal numbers, float32."""
    return torch.randn(*shape, generator=rng.generator(0, tag))


CODEBOOKS = Codebooks(1, 6, 0.5)


def small(bottleneck: str = "plain") -> Autoencoder:
    """A small autoencoder, the same at every call."""
    with rng.scoped(0, "autoencoder"):
        return build_autoencoder(SMALL, bottleneck, CODEBOOKS).eval()


def count(module: nn.Module) -> int:
    """Numbers that a module learns."""
    return sum(p.numel() for p in module.parameters())
