"""From parameters to an autoencoder in training: its config, its teacher, the module that learns."""

from typing import Any

import torch

from flowprior.autoencoder.bottleneck import Codebooks
from flowprior.autoencoder.config import Autoencoder, TrainAutoencoder
from flowprior.autoencoder.registry import autoencoder_from
from flowprior.autoencoder.representation import RepresentationHead
from flowprior.autoencoder.shape import Shape
from flowprior.autoencoder.softvq_terms import Teacher, Trainee
from flowprior.core import rng
from flowprior.encoders.networks import TrainedTransformer, patch_tokens, trained_transformer
from flowprior.encoders.shipped import DigitsEncoder

TAG = "train_ae"
"""Of the random draws, which come from (seed, tag, purpose)."""


def autoencoder_config(
    choice: Autoencoder,
    settings: TrainAutoencoder,
    *,
    image_size: int,
    channels: int,
    latent_dim: int,
) -> dict[str, Any]:
    """What `autoencoder_from` builds the autoencoder from, as JSON has it."""
    shape = Shape(
        image_size=image_size,
        channels=channels,
        patch_size=settings.patch_size,
        num_latents=settings.num_latents,
        latent_dim=latent_dim,
        width=settings.width,
        depth=settings.depth,
        num_heads=settings.num_heads,
        layer_scale=settings.layer_scale,
    )
    softvq = settings.softvq
    codebooks = Codebooks(softvq.num_codebooks, softvq.num_codes, softvq.temperature)
    return {
        "model": choice.model,
        "shape": shape._asdict(),
        "bottleneck": choice.bottleneck,
        "codebooks": codebooks._asdict(),
        "options": choice.options,
    }


def build_trainee(
    config: dict[str, Any],
    settings: TrainAutoencoder,
    teacher: Teacher | None,
    encoder: TrainedTransformer | None,
    seed: int,
) -> Trainee:
    """The autoencoder, and the head that predicts the teacher's features.

    Args:
        config: See `autoencoder_config`.
        settings: The section `train_ae`.
        teacher: Whose features are predicted; None for no head.
        encoder: What the autoencoder's encoder starts from; None for from scratch.
        seed: Of the run.

    Raises:
        ValueError: An autoencoder of one's own lacks a method that a parameter asks for.
    """
    head = None
    with rng.scoped(seed, TAG, "init"):
        autoencoder = autoencoder_from(config)
        if teacher is not None:
            width, dim = settings.softvq.representation_width, config["shape"]["latent_dim"]
            head = RepresentationHead(dim, width, teacher.dim)
    if encoder is not None:
        _method(autoencoder, "start_from", "train_ae.encoder", "null")(encoder)
    if settings.gradient_checkpointing:
        _method(autoencoder, "checkpoint_gradients", "train_ae.gradient_checkpointing", "false")(
            True
        )
    return Trainee(autoencoder, head)


def _method(autoencoder: Any, name: str, asked_by: str, off: str) -> Any:
    """A method that not every autoencoder of one's own has to have."""
    if not hasattr(autoencoder, name):
        raise ValueError(
            f"{asked_by} needs an autoencoder with a method {name}, and {type(autoencoder).__name__} has none; "
            f"give it one, or set {asked_by} to {off}"
        )
    return getattr(autoencoder, name)


def open_encoder(settings: TrainAutoencoder, image_size: int) -> TrainedTransformer | None:
    """The trained transformer that the encoder starts from; None where `train_ae.encoder` is null."""
    if settings.encoder is None:
        return None
    return trained_transformer(settings.encoder, image_size, settings.patch_size)


def open_teacher(
    choice: Autoencoder,
    settings: TrainAutoencoder,
    on_digits: bool,
    image_size: int,
    seed: int,
    device: torch.device,
) -> Teacher | None:
    """The network whose features SoftVQ's latents should predict; None where they should not.

    Digits: their semantic network. Else the transformer that `softvq.representation_model` names.
    """
    softvq = settings.softvq
    if choice.bottleneck != "softvq" or not softvq.representation_weight:
        return None
    if on_digits:
        digits = DigitsEncoder(device)
        return Teacher(digits.on_device, digits.dim, digits.digest)
    with rng.scoped(seed, TAG, "teacher"):
        encoder = patch_tokens(
            softvq.representation_model,
            size=image_size,
            patch_size=settings.patch_size,
            device=device,
            pretrained=softvq.representation_pretrained,
        )
    return Teacher(encoder.on_device, encoder.dim, encoder.facts["sha256"])
