"""Sizes of an autoencoder."""

from typing import NamedTuple


class Shape(NamedTuple):
    """Sizes of an autoencoder.

    Attributes:
        image_size: Height and width in pixels.
        channels: Of the image.
        patch_size: Height and width of a patch in pixels.
        num_latents: Latent tokens n.
        latent_dim: Channels d of a latent.
        width: Of both transformers.
        depth: Blocks of each.
        num_heads: Attention heads.
        layer_scale: What the factor on each residual branch starts from; None for no such factors.
    """

    image_size: int
    channels: int
    patch_size: int
    num_latents: int
    latent_dim: int
    width: int
    depth: int
    num_heads: int
    layer_scale: float | None = None
