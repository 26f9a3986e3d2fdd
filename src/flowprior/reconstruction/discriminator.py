"""A discriminator on the features of a frozen vision transformer: the heads learn, the transformer does not.

`FrozenFeatures` and `Discriminator` are two modules, so that the transformer is neither optimised
nor averaged nor saved. After StyleGAN-T, arXiv:2301.09515.
"""

import difflib
from collections.abc import Sequence
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

NUM_READOUTS = 5
NUM_GROUPS = 32
# Paper: a DINOv2 discriminator (App. C.3); the authors' code, followed here, has DINO's ViT-S/16.
DEFAULT_BACKBONE = "vit_small_patch16_224.dino"


class FrozenFeatures(nn.Module):
    """Tokens of a frozen transformer at five depths, each with the class token added; always in eval mode.

    The depths are before the first block and after each quarter of the blocks.

    Args:
        vit: A timm vision transformer with a class token; its parameters are frozen.
        mean: Of each channel, for images in [0, 1], as the transformer was trained.
        std: Likewise.

    Raises:
        ValueError: The transformer has no class token, or too few blocks.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        vit: VisionTransformer,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ) -> None:
        super().__init__()
        if not vit.has_class_token or len(vit.blocks) < NUM_READOUTS - 1:
            raise ValueError(
                f"a discriminator reads a transformer with a class token and at least {NUM_READOUTS - 1} blocks; "
                f"this one has {len(vit.blocks)} blocks and {'a' if vit.has_class_token else 'no'} class token"
            )
        self.vit = vit.requires_grad_(False)
        quarters = range(1, NUM_READOUTS)
        self._depths = [len(vit.blocks) * k // (NUM_READOUTS - 1) - 1 for k in quarters]
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.eval()

    @property
    def width(self) -> int:
        """Channels of a token."""
        return int(self.vit.embed_dim)

    def train(self, mode: bool = True) -> "FrozenFeatures":
        """Stay in eval mode, whatever the module that holds this one is put into."""
        return super().train(False)

    def forward(
        self, images: Float[Tensor, "b c H W"], generator: torch.Generator
    ) -> Float[Tensor, "b r n w"]:
        """Images in [-1, 1] to the tokens of every readout; `generator` draws the crop.

        Raises:
            ValueError: The images are not RGB.
        """
        if images.shape[1] != 3:
            raise ValueError(
                f"the discriminator's transformer takes 3 channels, the images have {images.shape[1]}; "
                "set the weight of the adversarial term to 0"
            )
        vit = self.vit
        images = fit_side(images, vit.patch_embed.img_size[0], generator)
        pixels = ((images + 1) / 2 - self.mean) / self.std
        tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(pixels)))
        maps = [tokens]
        for depth, block in enumerate(vit.blocks):
            tokens = block(tokens)
            if depth in self._depths:
                maps.append(tokens)
        read = torch.stack(maps, dim=1)
        return read[:, :, vit.num_prefix_tokens :] + read[:, :, :1]


def fit_side(
    images: Float[Tensor, "b c H W"], side: int, generator: torch.Generator
) -> Float[Tensor, "b c s s"]:
    """Square images of that side: one crop for the whole batch or a smaller copy, equally often.

    Images that are too small are enlarged (bicubic).
    """
    height, width = images.shape[-2:]
    if min(height, width) < side:
        return F.interpolate(images, (side, side), mode="bicubic")
    coin, down, right = torch.rand(3, generator=generator).tolist()
    if coin < 0.5:
        top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
        return images[..., top : top + side, left : left + side]
    return F.interpolate(images, (side, side), mode="area")


class Head(nn.Module):
    """One logit for each token, from a sequence of tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input = _layer(width, 1)
        self.neighbours = _layer(width, 9)
        self.output = spectral_norm(nn.Conv1d(width, 1, 1))

    def forward(self, tokens: Float[Tensor, "b n w"]) -> Float[Tensor, "b n"]:
        h = self.input(tokens.transpose(1, 2))
        h = (self.neighbours(h) + h) / 2**0.5
        logits: Tensor = self.output(h).squeeze(1)
        return logits


def _layer(width: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv1d(width, width, kernel, padding=kernel // 2, padding_mode="circular")
    # Paper: the authors' code has SyncBatchNorm, which refuses CPU tensors. Group norm has as many
    # parameters and sees one image at a time: logits depend neither on the launch nor on which
    # images are judged together, and there are no running statistics to save.
    return nn.Sequential(
        spectral_norm(convolution), nn.GroupNorm(NUM_GROUPS, width), nn.LeakyReLU(0.2)
    )


class LogitAverages(nn.Module):
    """Moving averages of the mean logits, the state of the LeCam regulariser; from 0, as in the authors' code."""

    real: Tensor
    fake: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    @torch.no_grad()
    def update(self, real: Float[Tensor, ""], fake: Float[Tensor, ""]) -> None:
        """Take in mean logits; give the means over all ranks."""
        self.real.lerp_(real, 1 - self.decay)
        self.fake.lerp_(fake, 1 - self.decay)


class Discriminator(nn.Module):
    """What learns: a head for each readout; with it, what else a checkpoint needs.

    Reads torch's global stream for its initialisation.

    Args:
        width: Channels of a token.

    Raises:
        ValueError: The width is no multiple of the groups of its norms.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        if width % NUM_GROUPS:
            raise ValueError(
                f"a discriminator's width must be a multiple of {NUM_GROUPS}, not {width}"
            )
        self.heads = nn.ModuleList(Head(width) for _ in range(NUM_READOUTS))
        self.averages = LogitAverages()

    def forward(self, features: Float[Tensor, "b r n w"]) -> Float[Tensor, "b m"]:
        """Logits of all tokens of all readouts, m = r n; higher is more real."""
        readouts = zip(self.heads, features.unbind(1), strict=True)
        return torch.cat([head(tokens) for head, tokens in readouts], dim=1)


def build_discriminator(
    name: str = DEFAULT_BACKBONE, *, pretrained: bool = True, side: int = 224
) -> tuple[FrozenFeatures, Discriminator]:
    """A discriminator on a timm transformer; reads torch's global stream for its initialisation.

    Args:
        name: What timm calls it, `hf-hub:owner/model`, or `local-dir:/folder` with timm's `config.json`
            and `model.safetensors` (a copy of the model's repository on the hub).
        pretrained: Whether to load its weights, from the hub's cache or over the network.
        side: Pixels that it sees.

    Raises:
        ValueError: timm has no such transformer, or it is not one that a discriminator can read.
        RuntimeError: Its weights cannot be had.
    """
    known = timm.list_pretrained()
    if ":" not in name and not (name in known if "." in name else timm.is_model(name)):
        near = difflib.get_close_matches(name, known)
        raise ValueError(f"timm has no model {name!r}; near it: {', '.join(near) or 'none'}")
    options: dict[str, Any] = {"num_classes": 0, "img_size": side}
    try:
        vit = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # each of timm's sources of weights raises errors of its own
        raise RuntimeError(
            f"the discriminator's transformer {name!r} cannot be loaded: {str(error).splitlines()[0]}. "
            "Without network, give local-dir:/folder, a copy of its repository on the hub, or "
            "fill the hub's cache ($HF_HOME) where there is one"
        ) from error
    if not isinstance(vit, VisionTransformer):
        raise ValueError(
            f"timm's {name} is a {type(vit).__name__}; a discriminator reads a VisionTransformer such as "
            f"{DEFAULT_BACKBONE}"
        )
    features = FrozenFeatures(vit, vit.pretrained_cfg["mean"], vit.pretrained_cfg["std"])
    return features, Discriminator(features.width)
