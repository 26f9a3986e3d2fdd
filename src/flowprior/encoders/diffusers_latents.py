"""Latents of an autoencoder of diffusers, a token for each place."""

import importlib
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowprior.core.hub import one_line
from flowprior.encoders.encoder import Encoder
from flowprior.encoders.folders import find_folder, read_config

DEFAULT_AUTOENCODER = "mit-han-lab/dc-ae-f32c32-in-1.0-diffusers"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
AUTOENCODERS = {
    "AutoencoderDC": "encoder_block_out_channels",
    "AutoencoderKL": "block_out_channels",
}
"""Classes that are read, and which entry of their config has one width for each halving and one more."""


def autoencoder_latents(
    name: str | None = None, *, revision: str | None = None, device: torch.device
) -> Encoder:
    """Latents of a diffusers autoencoder, a token for each place; of AutoencoderKL the posterior's mean.

    The config's `scaling_factor` is not applied: the stage `project` finds a scale of its own. The
    facts have `model`, `class`, `revision` (the commit, of a model on the hub) and `sha256`.

    Args:
        name: `owner/model` on the hub, or a folder that `save_pretrained` wrote. None is a DC-AE with 32
            channels at a 32nd of the resolution.
        revision: Commit, tag or branch on the hub.
        device: Where to compute.

    Raises:
        ModuleNotFoundError: diffusers is absent.
        ValueError: There is no such model, its folder is incomplete or damaged, or it is of another
            class.
        RuntimeError: The hub cannot be reached and its cache lacks the model.
    """
    name = DEFAULT_AUTOENCODER if name is None else name
    folder, facts = find_folder(name, revision, DIFFUSERS_WEIGHTS)
    config = read_config(folder)
    kind = config.get("_class_name")
    if kind not in AUTOENCODERS:
        raise ValueError(
            f"{name}'s config.json has the _class_name {kind!r}; latents come from {' or '.join(AUTOENCODERS)}"
        )
    try:
        diffusers = importlib.import_module("diffusers")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "latents of an autoencoder need the package diffusers: pip install 'flowprior[imagenet]'"
        ) from error
    try:
        network, loaded = getattr(diffusers, kind).from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"diffusers cannot build {name} from its config and weights: {one_line(error)}"
        ) from error
    missing = loaded["missing_keys"]
    if missing:
        raise ValueError(
            f"{folder / DIFFUSERS_WEIGHTS} lacks {len(missing)} tensors, among them {missing[0]}; "
            "download the model again"
        )
    ratio = 2 ** (len(network.config[AUTOENCODERS[kind]]) - 1)
    dim = int(network.config["latent_channels"])
    return Encoder(_Latents(network, ratio), dim, {**facts, "class": kind}, device)


class _Latents(nn.Module):
    def __init__(self, autoencoder: Any, ratio: int) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.autoencoder.decoder = nn.Identity()  # only the encoder goes to the device
        self._ratio = ratio

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n D"]:
        channels, height, width = images.shape[1:]
        if channels != 3 or height % self._ratio or width % self._ratio:
            raise ValueError(
                f"the autoencoder takes 3 channels and sides that {self._ratio} divides, these are "
                f"{channels} x {height} x {width}"
            )
        code = self.autoencoder.encode(images)
        latents: Tensor = code.latent_dist.mean if "latent_dist" in code else code.latent
        return latents.flatten(2).transpose(1, 2)
