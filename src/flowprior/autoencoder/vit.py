"""A ViT autoencoder whose code is a short set of latent tokens, not a grid; App. C.3, arXiv:2506.05240."""

from typing import Any

import torch
from jaxtyping import Float
from timm.models import checkpoint_seq
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from flowprior.autoencoder.bottleneck import Codebooks, build_bottleneck
from flowprior.autoencoder.shape import Shape
from flowprior.core.codes import Codes


def patchify(images: Float[Tensor, "b c H W"], size: int) -> Float[Tensor, "b p f"]:
    """Cut images into patches, row by row; features in the order (row, column, channel)."""
    b, c, height, width = images.shape
    grid = images.view(b, c, height // size, size, width // size, size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, size * size * c)


def unpatchify(
    patches: Float[Tensor, "b p f"], size: int, channels: int
) -> Float[Tensor, "b c H W"]:
    """Undo `patchify` for square images."""
    b, p, _ = patches.shape
    side = round(p**0.5)
    grid = patches.view(b, side, side, size, size, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(b, channels, side * size, side * size)


class LatentEncoder(nn.Module):
    """Patches and learned latent tokens through one transformer; the latent tokens come out.

    Images in [-1, 1] go in as they are, also where the transformer was trained on ImageNet's mean and
    standard deviation: so the authors' code does.

    Args:
        vit: A timm vision transformer with a class token.
        num_latents: Latent tokens n.
    """

    def __init__(self, vit: VisionTransformer, num_latents: int) -> None:
        super().__init__()
        self.vit = vit
        self.gradient_checkpointing = False
        self.num_latents = num_latents
        self.latent_tokens = nn.Parameter(torch.randn(1, num_latents, vit.embed_dim) * 0.02)
        self.latent_positions = nn.Parameter(torch.empty(1, num_latents, vit.embed_dim))
        nn.init.trunc_normal_(self.latent_positions, std=0.02)

    def forward(self, images: Float[Tensor, "b c H W"]) -> Float[Tensor, "b n w"]:
        vit, b = self.vit, len(images)
        patches = vit.patch_embed(images)
        image_tokens = torch.cat([vit.cls_token.expand(b, -1, -1), patches], 1) + vit.pos_embed
        latents = (self.latent_tokens + self.latent_positions).expand(b, -1, -1)
        tokens = _through(
            vit.blocks, torch.cat([image_tokens, latents], dim=1), self.gradient_checkpointing
        )
        out: Tensor = vit.norm(tokens[:, -self.num_latents :])
        return out


class LatentDecoder(nn.Module):
    """Mask tokens at the patches' places and the latents through one transformer; the patches come out.

    Args:
        vit: A timm vision transformer with a class token; its patch embedding is dropped.
        num_latents: Latent tokens n.
        latent_dim: Channels d of a latent.
        patch_features: Numbers in a patch.
    """

    def __init__(
        self, vit: VisionTransformer, num_latents: int, latent_dim: int, patch_features: int
    ) -> None:
        super().__init__()
        self.vit = vit
        self.gradient_checkpointing = False
        self.num_patches = vit.patch_embed.num_patches
        vit.patch_embed = nn.Identity()
        self.input = nn.Linear(latent_dim, vit.embed_dim)
        self.latent_positions = nn.Parameter(torch.empty(1, num_latents, vit.embed_dim))
        nn.init.trunc_normal_(self.latent_positions, std=0.02)
        self.mask_token = nn.Parameter(torch.randn(1, 1, vit.embed_dim) * 0.02)
        self.output = nn.Linear(vit.embed_dim, patch_features)

    def forward(self, latents: Float[Tensor, "b n d"]) -> Float[Tensor, "b p f"]:
        vit, b = self.vit, len(latents)
        masks = self.mask_token.expand(b, self.num_patches, -1)
        image_tokens = torch.cat([vit.cls_token.expand(b, -1, -1), masks], 1) + vit.pos_embed
        tokens = torch.cat([image_tokens, self.input(latents) + self.latent_positions], dim=1)
        tokens = _through(vit.blocks, tokens, self.gradient_checkpointing)
        out: Tensor = self.output(vit.norm(tokens[:, 1 : 1 + self.num_patches]))
        return out


class Autoencoder(nn.Module):
    """Encoder, bottleneck and decoder.

    Args:
        encoder: From images to tokens.
        bottleneck: From tokens to latents.
        decoder: From latents to patches.
        patch_size: Of the output, in pixels.
        channels: Of the images.
    """

    def __init__(
        self,
        encoder: LatentEncoder,
        bottleneck: nn.Module,
        decoder: LatentDecoder,
        patch_size: int,
        channels: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.bottleneck = bottleneck
        self.decoder = decoder
        self.patch_size = patch_size
        self.channels = channels

    @property
    def last_layer(self) -> Tensor:
        """The weight that the adversarial term is balanced at."""
        weight: Tensor = self.decoder.output.weight
        return weight

    def start_from(self, trained: Any) -> None:
        """Take the encoder's transformer from a trained one, a `TrainedTransformer`.

        Raises:
            ValueError: It has other sizes.
        """
        trained.into(self.encoder.vit)

    def checkpoint_gradients(self, on: bool = True) -> "Autoencoder":
        """Keep only what goes into each block for the backward pass and compute the rest again, a third more work."""
        self.encoder.gradient_checkpointing = self.decoder.gradient_checkpointing = on
        return self

    def encode(
        self, images: Float[Tensor, "b c H W"], noise: Float[Tensor, "b n d"] | None = None
    ) -> Codes:
        """Images in [-1, 1] to latents; `noise` samples the posterior where there is one."""
        codes: Codes = self.bottleneck(self.encoder(images), noise)
        return codes

    def decode(self, latents: Float[Tensor, "b n d"]) -> Float[Tensor, "b c H W"]:
        """Latents to images, not clamped."""
        return unpatchify(self.decoder(latents), self.patch_size, self.channels)

    def forward(
        self, images: Float[Tensor, "b c H W"], noise: Float[Tensor, "b n d"] | None = None
    ) -> tuple[Float[Tensor, "b c H W"], Codes]:
        codes = self.encode(images, noise)
        return self.decode(codes.latents), codes


def _through(blocks: nn.Sequential, tokens: Tensor, checkpointed: bool) -> Tensor:
    again = checkpointed and torch.is_grad_enabled()
    out: Tensor = checkpoint_seq(blocks, tokens, use_reentrant=False) if again else blocks(tokens)
    return out


def build_autoencoder(
    shape: Shape, bottleneck: str, codebooks: Codebooks | None = None
) -> Autoencoder:
    """An autoencoder from scratch; reads torch's global stream for its initialisation.

    Args:
        shape: Sizes.
        bottleneck: Between its transformers.
        codebooks: Of the bottleneck softvq.

    Raises:
        ValueError: The patch size does not divide the image, or see `build_bottleneck`.
    """
    if shape.image_size % shape.patch_size:
        raise ValueError(
            f"patch_size {shape.patch_size} does not divide the image's {shape.image_size} pixels"
        )
    encoder, decoder = (
        VisionTransformer(
            img_size=shape.image_size,
            patch_size=shape.patch_size,
            in_chans=shape.channels,
            num_classes=0,
            global_pool="",
            embed_dim=shape.width,
            depth=shape.depth,
            num_heads=shape.num_heads,
            init_values=shape.layer_scale,
        )
        for _ in range(2)
    )
    return Autoencoder(
        LatentEncoder(encoder, shape.num_latents),
        build_bottleneck(bottleneck, shape.width, shape.latent_dim, shape.num_latents, codebooks),
        LatentDecoder(
            decoder,
            shape.num_latents,
            shape.latent_dim,
            shape.patch_size**2 * shape.channels,
        ),
        shape.patch_size,
        shape.channels,
    )
