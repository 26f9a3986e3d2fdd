"""Frozen networks that turn images into features: a vision transformer's patch tokens, an autoencoder's latents.

timm and diffusers build them. Weights come from safetensors alone, in a folder or on the hub, and
are named by their sha256.
"""

import difflib
import hashlib
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from flowprior.core.hub import one_line
from flowprior.encoders.encoder import Encoder
from flowprior.encoders.folders import download, find_folder, read_config

# Paper: "DinoV2" with 768 channels, so ViT-B/14; and a VAE with 32, which none of the usual ones has.
DEFAULT_TRANSFORMER = "vit_base_patch14_dinov2.lvd142m"
TIMM_WEIGHTS = "model.safetensors"


def patch_tokens(
    name: str | None = None,
    *,
    size: int,
    patch_size: int | None = None,
    revision: str | None = None,
    device: torch.device,
    pretrained: bool = True,
) -> Encoder:
    """Patch tokens of a timm vision transformer after its last norm; class token and registers are left out.

    Images go to the nearest multiple of the patch not above `size` (bicubic, antialiased: 256 to 252
    pixels for patches of 14) and are normalised as the transformer was trained; its positions are
    resampled to the new grid. The facts have `model`, `revision` (the commit, of a model on the hub),
    `sha256` and `tokens` (rows x columns).

    Args:
        name: What timm calls it, `hf-hub:owner/model`, or a folder with timm's `config.json` and
            `model.safetensors` (`local-dir:/folder` or its bare path). None is DINOv2's ViT-B/14.
        size: Pixels of the images' sides.
        patch_size: Of its patches, whose kernel is resampled; None for what it was trained with.
        revision: Commit, tag or branch on the hub.
        device: Where to compute.
        pretrained: False leaves it random; then it reads torch's global stream, and the sha256 is
            that of the weights as `io.save_tensors` would write them.

    Raises:
        ValueError: There is no such model, its folder is incomplete or damaged, it is no vision
            transformer, or the images are smaller than a patch.
        RuntimeError: The hub cannot be reached and its cache lacks the model.
    """
    vit, facts = _build_timm(name := name or DEFAULT_TRANSFORMER, revision, pretrained)
    patch = (patch_size, patch_size) if patch_size else vit.patch_embed.patch_size
    grid = (size // patch[0], size // patch[1])
    if not all(grid):
        raise ValueError(f"images of {size} pixels are smaller than a patch of {name}, {patch}")
    vit.set_input_size((grid[0] * patch[0], grid[1] * patch[1]), patch)
    if not pretrained:
        facts["sha256"] = _state_digest(vit)
    facts["tokens"] = f"{grid[0]} x {grid[1]}"
    return Encoder(_PatchTokens(vit, size), vit.embed_dim, facts, device)


class TrainedTransformer:
    """A trained vision transformer that another of the same sizes starts from.

    Args:
        name: What timm calls it, for messages.
        vit: It.
        facts: As of `patch_tokens`.

    Attributes:
        facts: Likewise.
        digest: Sha256 of its weights.
    """

    def __init__(self, name: str, vit: Any, facts: dict[str, str]) -> None:
        self._name = name
        self._vit = vit
        self.facts = facts
        self.digest = facts["sha256"]

    def into(self, vit: Any) -> None:
        """Copy its weights.

        Raises:
            ValueError: The other has other sizes.
        """
        self.check(vit)
        vit.load_state_dict(self._vit.state_dict())

    def check(self, vit: Any) -> None:
        """Whether the other, which may be on the meta device, has the same sizes.

        Raises:
            ValueError: It has not.
        """
        theirs = self._vit.state_dict()
        sizes = {name: tuple(value.shape) for name, value in vit.state_dict().items()}
        wrong = sorted(
            name
            for name in theirs.keys() | sizes.keys()
            if name not in theirs or sizes.get(name) != tuple(theirs[name].shape)
        )
        said = ""
        heads = [of.blocks[0].attn.num_heads for of in (self._vit, vit)]  # of no tensor's size
        if wrong:
            first = wrong[0]
            found = tuple(theirs[first].shape) if first in theirs else "absent"
            said = f"{first}, there {found}, here {sizes.get(first, 'absent')} ({len(wrong)} tensors differ)"
        elif heads[0] != heads[1]:
            said = f"attention heads, there {heads[0]}, here {heads[1]}"
        if said:
            raise ValueError(
                f"the encoder {self._name} does not go with the preset's sizes: {said}; set width, depth, num_heads "
                "and layer_scale of train_ae to its own"
            )


def trained_transformer(name: str, size: int, patch_size: int) -> TrainedTransformer:
    """A timm vision transformer without its classifier, its patches and positions resampled.

    Args:
        name: As of `patch_tokens`.
        size: Pixels of the images' sides.
        patch_size: Of the patches.

    Raises:
        ValueError, RuntimeError: As `patch_tokens`.
    """
    vit, facts = _build_timm(name, None, True)
    vit.reset_classifier(0)
    vit.set_input_size((size, size), (patch_size, patch_size))
    return TrainedTransformer(name, vit, facts)


def _build_timm(name: str, revision: str | None, pretrained: bool) -> tuple[Any, dict[str, str]]:
    """A vision transformer of timm's as it was trained, and its facts."""
    import timm
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    source, facts = _find_timm(name, revision, pretrained)
    try:
        # With its own head and at its own size: only then does timm insist on every weight.
        vit = timm.create_model(source, pretrained=pretrained)
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"timm cannot build {name} from its config and weights: {one_line(error)}"
        ) from error
    if not isinstance(vit, VisionTransformer) or not isinstance(vit.patch_embed, PatchEmbed):
        raise ValueError(
            f"timm's {name} is a {type(vit).__name__}; patch tokens come from a VisionTransformer such as "
            f"{DEFAULT_TRANSFORMER}"
        )
    return vit, facts


class _PatchTokens(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, vit: Any, size: int) -> None:
        super().__init__()
        self.vit = vit
        self._size = size
        for name in ("mean", "std"):
            value = torch.tensor(vit.pretrained_cfg[name]).view(-1, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n D"]:
        expected = (len(self.mean), self._size, self._size)
        if images.shape[1:] != expected:
            raise ValueError(
                f"the transformer was set up for images {expected}, these are {tuple(images.shape[1:])}"
            )
        side = self.vit.patch_embed.img_size
        if images.shape[2:] != side:
            images = F.interpolate(images, side, mode="bicubic", antialias=True).clamp(-1, 1)
        tokens = self.vit.forward_features(((images + 1) / 2 - self.mean) / self.std)
        patches: Tensor = tokens[:, self.vit.num_prefix_tokens :]
        return patches


def _find_timm(name: str, revision: str | None, pretrained: bool) -> tuple[str, dict[str, str]]:
    """What `timm.create_model` is to build, and the facts of its weights."""
    import timm

    weights = TIMM_WEIGHTS if pretrained else None
    published = timm.list_pretrained()
    if name in published if "." in name else timm.is_model(name):
        if not pretrained:
            return name, {"model": name}
        published_as = timm.get_pretrained_cfg(name)
        repository = published_as and published_as.hf_hub_id
        if not repository:
            raise ValueError(
                f"timm knows no weights of {name!r} on the hub; give a folder with them"
            )
        folder, facts = download(repository, revision, weights)
        facts["model"] = name
    elif name.startswith("hf-hub:"):
        folder, facts = download(name.removeprefix("hf-hub:"), revision, weights)
    elif Path(name.removeprefix("local-dir:")).is_dir():
        folder, facts = find_folder(name.removeprefix("local-dir:"), revision, weights)
    elif name.startswith("local-dir:") or "/" in name:
        raise ValueError(
            f"{name!r} is not a folder; give one with timm's config.json and {TIMM_WEIGHTS}, or hf-hub:owner/model"
        )
    else:
        near = difflib.get_close_matches(name, published)
        raise ValueError(f"timm has no model {name!r}; near it: {', '.join(near) or 'none'}")
    architecture = read_config(folder).get("architecture")
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise ValueError(
            f"{folder / 'config.json'} names the architecture {architecture!r}, which timm does not have; timm's "
            f"own repositories on the hub are timm/<name>, for instance timm/{DEFAULT_TRANSFORMER}"
        )
    return f"local-dir:{folder}", facts


def _state_digest(network: nn.Module) -> str:
    from safetensors.torch import save

    tensors = {name: t.contiguous() for name, t in network.state_dict().items()}
    return hashlib.sha256(save(tensors)).hexdigest()
