"""A small convolutional autoencoder, for small images on a CPU: its latents are places of a grid, row by row."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from flowprior.autoencoder.bottleneck import Codebooks, build_bottleneck
from flowprior.autoencoder.shape import Shape
from flowprior.core.codes import Codes

GROUPS = 8
"""Of the norms, at most."""


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside the identity, each behind a norm and SiLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(_norm(width) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        for parameter in self.convolutions[1].parameters():  # at first the identity
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "b w h v"]) -> Float[Tensor, "b w h v"]:
        h = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            h = convolution(F.silu(norm(h)))
        return x + h


class ConvAutoencoder(nn.Module):
    """Encoder, bottleneck and decoder; every halving of the resolution doubles the width, up to four times.

    Args:
        channels: Of the images.
        size: Their height and width.
        halvings: How often the resolution is halved: a latent for each 2^halvings pixels along a side.
        width: Channels at full resolution.
        depth: Residual blocks at each resolution.
        bottleneck: From tokens of `width` times 2^min(halvings, 2) channels to latents.
        latent_dim: Channels d of a latent.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        halvings: int,
        width: int,
        depth: int,
        bottleneck: nn.Module,
        latent_dim: int,
    ) -> None:
        super().__init__()
        widths = widths_of(width, halvings)
        self.side = size >> halvings
        self.gradient_checkpointing = False
        self.bottleneck = bottleneck
        down: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1)]
        for level, own in enumerate(widths):
            down += [ResidualBlock(own) for _ in range(depth)]
            if level < halvings:
                down.append(nn.Conv2d(own, widths[level + 1], 4, stride=2, padding=1))
        down += [_norm(widths[-1]), nn.SiLU()]
        up: list[nn.Module] = [nn.Conv2d(latent_dim, widths[-1], 3, padding=1)]
        for level, own in reversed(list(enumerate(widths))):
            up += [ResidualBlock(own) for _ in range(depth)]
            if level:
                up.append(nn.ConvTranspose2d(own, widths[level - 1], 4, stride=2, padding=1))
        self.encoder = nn.Sequential(*down)
        self.decoder = nn.Sequential(*up, _norm(width), nn.SiLU())
        self.output = nn.Conv2d(width, channels, 3, padding=1)

    @property
    def last_layer(self) -> Tensor:
        """The weight that the adversarial term is balanced at."""
        return self.output.weight

    def checkpoint_gradients(self, on: bool = True) -> "ConvAutoencoder":
        """Keep only what goes into each block for the backward pass and compute the rest again."""
        self.gradient_checkpointing = on
        return self

    def encode(
        self, images: Float[Tensor, "b c H W"], noise: Float[Tensor, "b n d"] | None = None
    ) -> Codes:
        """Images in [-1, 1] to latents, a place of the grid each; `noise` samples the posterior where there is one."""
        tokens = self._through(self.encoder, images).flatten(2).transpose(1, 2)
        codes: Codes = self.bottleneck(tokens, noise)
        return codes

    def decode(self, latents: Float[Tensor, "b n d"]) -> Float[Tensor, "b c H W"]:
        """Latents to images, not clamped."""
        grid = latents.transpose(1, 2).unflatten(2, (self.side, self.side))
        out: Tensor = self.output(self._through(self.decoder, grid))
        return out

    def forward(
        self, images: Float[Tensor, "b c H W"], noise: Float[Tensor, "b n d"] | None = None
    ) -> tuple[Float[Tensor, "b c H W"], Codes]:
        codes = self.encode(images, noise)
        return self.decode(codes.latents), codes

    def _through(self, layers: nn.Sequential, x: Tensor) -> Tensor:
        again = self.gradient_checkpointing and torch.is_grad_enabled()
        for layer in layers:
            x = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
        return x


def widths_of(width: int, halvings: int) -> list[int]:
    """Channels at each resolution, from the full one down."""
    return [width * 2 ** min(level, 2) for level in range(halvings + 1)]


def _norm(width: int) -> nn.GroupNorm:
    groups = next(n for n in range(min(GROUPS, width), 0, -1) if width % n == 0)
    return nn.GroupNorm(groups, width)


def build_autoencoder(
    shape: Shape, bottleneck: str, codebooks: Codebooks | None = None
) -> ConvAutoencoder:
    """An autoencoder from scratch; reads torch's global stream for its initialisation.

    Args:
        shape: Sizes: `patch_size` pixels along a side to a latent, a power of two; `width` at full resolution; `depth`
            residual blocks at each. It has no heads.
        bottleneck: Between encoder and decoder.
        codebooks: Of the bottleneck softvq.

    Raises:
        ValueError: The patch size is no power of two or does not divide the image, `num_latents` is not the number of
            places, or see `build_bottleneck`.
    """
    halvings = shape.patch_size.bit_length() - 1
    if 1 << halvings != shape.patch_size:
        raise ValueError(
            f"autoencoder.model conv halves the resolution: train_ae.patch_size must be a power of two, found "
            f"{shape.patch_size}"
        )
    if shape.image_size % shape.patch_size:
        raise ValueError(
            f"patch_size {shape.patch_size} does not divide the image's {shape.image_size} pixels"
        )
    side = shape.image_size // shape.patch_size
    if shape.num_latents != side * side:
        raise ValueError(
            f"autoencoder.model conv has a latent for each {shape.patch_size} x {shape.patch_size} pixels, "
            f"{side * side} of an image; train_ae.num_latents is {shape.num_latents}"
        )
    return ConvAutoencoder(
        shape.channels,
        shape.image_size,
        halvings,
        shape.width,
        shape.depth,
        build_bottleneck(
            bottleneck,
            widths_of(shape.width, halvings)[-1],
            shape.latent_dim,
            shape.num_latents,
            codebooks,
        ),
        shape.latent_dim,
    )
