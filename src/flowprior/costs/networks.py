"""The pipeline's networks on the meta device, by parameters: the shapes that stages train or ask, without weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from flowprior.autoencoder.setup import autoencoder_config, build_trainee
from flowprior.autoencoder.softvq_terms import Teacher, Trainee
from flowprior.config.schema import Params
from flowprior.core.registry import PLUGINS
from flowprior.costs.flops import META
from flowprior.costs.work import counting_plugin
from flowprior.encoders.networks import DEFAULT_TRANSFORMER
from flowprior.encoders.shipped import load_digits_network
from flowprior.flow.velocity import VelocityMLP
from flowprior.generators.protocol import LatentShape
from flowprior.generators.registry import build_generator
from flowprior.prior.flow_prior import FlowPrior
from flowprior.prior.projection import Projection
from flowprior.reconstruction.discriminator import build_discriminator
from flowprior.reconstruction.perceptual import build_perceptual
from flowprior.reconstruction.terms import AdversarialTerm, PerceptualTerm


def feature_transformer(cfg: Params) -> VisionTransformer | None:
    """The transformer that makes semantic features of photographs, set up as `encoders.networks.patch_tokens` does it.

    Returns:
        None where features come from something else, or the transformer is not timm's own: that would have to be read
        from a folder or the hub.

    Raises:
        ValueError: The images are smaller than its patches.
    """
    name, prior, size = cfg.prior.model or DEFAULT_TRANSFORMER, cfg.prior, cfg.images.size
    semantic = prior.source in ("semantic", "shuffled") and prior.encoder == "timm"
    if not semantic or prior.path is not None or not timm.is_model(name):
        return None
    with META:
        vit: VisionTransformer = timm.create_model(name, pretrained=False, num_classes=0)
        height, width = vit.patch_embed.patch_size
        rows, columns = size // height, size // width
        if not rows or not columns:
            raise ValueError(
                f"images of {size} pixels are smaller than a patch of {name}, {(height, width)}"
            )
        vit.set_input_size((rows * height, columns * width))
    return vit.eval().requires_grad_(False)


def velocity_network(cfg: Params) -> VelocityMLP:
    """The velocity that `train_flow` trains."""
    with META:
        return VelocityMLP(cfg.project.dim, cfg.train_flow.width, cfg.train_flow.depth)


def flow_prior(cfg: Params, feature_dim: int) -> FlowPrior:
    """The frozen prior that `train_ae` asks."""
    velocity = velocity_network(cfg)
    with META:
        matrix = torch.empty(feature_dim, velocity.dim)
        projection = Projection(matrix, 1.0, cfg.project.operator, cfg.seed)
    return FlowPrior(velocity, projection, cfg.train_flow.time_groups)


def trainee(cfg: Params, channels: int, teacher: Teacher | None) -> Trainee:
    """The autoencoder, and with a teacher the head that predicts its features, as `train_ae` builds them.

    Raises:
        UncountedError: The autoencoder is a plugin that the meta device does not hold.
    """
    config = autoencoder_config(
        cfg.autoencoder,
        cfg.train_ae,
        image_size=cfg.images.size,
        channels=channels,
        latent_dim=cfg.project.dim,
    )
    with autoencoder_plugin(cfg), META:
        return build_trainee(config, cfg.train_ae, teacher, None, cfg.seed)


@contextmanager
def autoencoder_plugin(cfg: Params) -> Iterator[None]:
    """Errors of an autoencoder or a bottleneck that is a plugin become an `UncountedError`."""
    model, bottleneck = cfg.autoencoder.model, cfg.autoencoder.bottleneck
    own = bottleneck.startswith(f"{PLUGINS}.") and not model.startswith(f"{PLUGINS}.")
    key, name = ("bottleneck", bottleneck) if own else ("model", model)
    with counting_plugin(f"autoencoder.{key}", name):
        yield


def teacher(cfg: Params) -> tuple[Teacher | None, dict[str, nn.Module]]:
    """The network whose features SoftVQ's latents should predict, and its module by name; none where they should not.

    Raises:
        ValueError: timm does not know it.
    """
    softvq = cfg.train_ae.softvq
    if cfg.autoencoder.bottleneck != "softvq" or not softvq.representation_weight:
        return None, {}
    if cfg.on_digits:
        network = load_digits_network("semantic").to(META)
        return Teacher(network.features, network.width, ""), {"teacher": network}
    options = {
        "num_classes": 0,
        "img_size": cfg.images.size,
        "patch_size": cfg.train_ae.patch_size,
    }
    try:
        with META:
            vit = timm.create_model(softvq.representation_model, pretrained=False, **options)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    vit.eval().requires_grad_(False)
    return Teacher(
        lambda images: vit.forward_features(images)[:, vit.num_prefix_tokens :], vit.embed_dim, ""
    ), {"teacher": vit}


def image_judges(perceptual: PerceptualTerm, adversarial: AdversarialTerm) -> dict[str, nn.Module]:
    """The frozen networks that judge reconstructions, by name.

    Raises:
        ValueError: The folder that the discriminator's transformer should be in is not there.
    """
    judges: dict[str, nn.Module] = {}
    with META:
        if perceptual.weight:
            judges["perceptual"] = build_perceptual(pretrained=False)
        if adversarial.weight:
            try:
                judges["transformer"], _ = build_discriminator(
                    adversarial.backbone, pretrained=False
                )
            except RuntimeError as error:
                raise ValueError(str(error)) from error
    return judges


def generator(cfg: Params, num_classes: int) -> Any:
    """The generator that `train_mar` trains.

    Raises:
        UncountedError: It is a plugin that the meta device does not hold.
    """
    shape = LatentShape(cfg.train_ae.num_latents, cfg.project.dim, num_classes)
    with counting_plugin("generator.model", cfg.generator.model), META:
        return build_generator(cfg.generator.model, shape, cfg.train_mar, cfg.generator.options)


def images(cfg: Params, batch: int, channels: int) -> Tensor:
    """Images [batch, channels, height, width]."""
    return torch.empty(batch, channels, cfg.images.size, cfg.images.size, device=META)


def latents(cfg: Params, batch: int) -> Tensor:
    """Latents [batch, tokens, channels]."""
    return torch.empty(batch, cfg.train_ae.num_latents, cfg.project.dim, device=META)
