"""Opens everything that a run will need, before the run: images, plugins, weights, packages, room on the disk.

Weights that have to be downloaded are downloaded now, into the caches where the stages look.
"""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from flowprior.autoencoder.setup import autoencoder_config, build_trainee, open_teacher
from flowprior.config.schema import Params
from flowprior.core.root import find_root, state_root
from flowprior.costs import plan
from flowprior.costs.facts import DIGITS, IMAGENET, assumed
from flowprior.costs.hardware import H100, num_parameters
from flowprior.costs.plugin_check import check_plugin, plugins_of
from flowprior.encoders.networks import trained_transformer
from flowprior.evaluation.inception import Inception
from flowprior.evaluation.reference import open_reference
from flowprior.features.source import Request, open_source
from flowprior.images.opening import open_images
from flowprior.images.sets import SPLITS, ImageSet, Split
from flowprior.reconstruction.discriminator import build_discriminator
from flowprior.reconstruction.perceptual import build_perceptual

CPU = torch.device("cpu")
GIB = 2**30


class Finding(NamedTuple):
    """What a look at one thing gave.

    Attributes:
        name: What was looked at.
        is_there: Whether it can be used.
        says: What it is, or in one line why it cannot be used.
    """

    name: str
    is_there: bool
    says: str


def preflight(cfg: Params) -> Iterator[Finding]:
    """Look at one thing after another that a run with these parameters will need."""
    for name, look in _checks(cfg):
        try:
            yield Finding(name, True, look())
        except Exception as error:  # whatever is wrong with one, the others are worth a look
            yield Finding(name, False, " ".join(str(error).split()))


class _Opened(dict[Split, ImageSet]):
    """Both splits, once they are open."""

    def __missing__(self, split: Split) -> ImageSet:
        raise ValueError("needs the images, which are missing")


def _checks(cfg: Params) -> Iterator[tuple[str, Callable[[], str]]]:
    """What to look at, and what says how it was found or raises."""
    images, settings = _Opened(), cfg.train_ae
    for key, name in plugins_of(cfg):
        yield f"{key} {name}", partial(check_plugin, cfg, key, name)
    yield "images", lambda: _find_images(cfg, images)
    yield f"prior {cfg.prior.source}", lambda: _find_prior(cfg, images)
    if settings.encoder is not None:
        yield "encoder", lambda: _find_encoder(cfg)
    if cfg.autoencoder.bottleneck == "softvq" and settings.softvq.representation_weight:
        yield "teacher", lambda: f"{_teacher_dim(cfg)} channels"
    if settings.perceptual.weight:
        pretrained = settings.perceptual.pretrained
        yield "LPIPS", lambda: _named(build_perceptual(pretrained=pretrained).network)
    if settings.adversarial.weight:
        backbone, trained = settings.adversarial.backbone, settings.adversarial.pretrained
        yield (
            "discriminator",
            lambda: _named(build_discriminator(backbone, pretrained=trained)[0].vit),
        )
    if cfg.evaluation.judge == "inception":
        yield "Inception", lambda: _find_inception(cfg)
        if (reference := cfg.evaluation.reference) is not None:
            yield "reference", lambda: _find_reference(reference, images, cfg.images.size)
    yield "disk", lambda: _find_room(cfg, images)


def _find_images(cfg: Params, images: _Opened) -> str:
    """Open both splits, and decode an image of each."""
    opened = {split: open_images(split=split, **cfg.image_source) for split in SPLITS}
    for of_split in opened.values():
        of_split.images([0])
    images |= opened
    counts = " and ".join(f"{len(images[split])} {split}" for split in SPLITS)
    return f"{counts}, {images['train'].num_classes} classes"


def _find_prior(cfg: Params, images: _Opened) -> str:
    request = Request(
        prior=cfg.prior,
        limits=cfg.extract_features,
        images=images,
        size=cfg.images.size,
        on_digits=cfg.on_digits,
        seed=cfg.seed,
        split_seed=cfg.images.split_seed,
        device=CPU,
    )
    facts = open_source(request).facts
    shown = {key: value[:12] if key == "sha256" else value for key, value in facts.items()}
    return ", ".join(f"{key} {value}" for key, value in shown.items() if "_images" not in key)


def _find_encoder(cfg: Params) -> str:
    """Open the transformer that the autoencoder's encoder starts from, and compare its sizes."""
    settings, size = cfg.train_ae, cfg.images.size
    encoder = trained_transformer(str(settings.encoder), size, settings.patch_size)
    config = autoencoder_config(
        cfg.autoencoder, settings, image_size=size, channels=3, latent_dim=cfg.project.dim
    )
    if cfg.autoencoder.model == "vit":
        with torch.device("meta"):
            trainee = build_trainee(config, settings, None, None, cfg.seed)
        encoder.check(trainee.autoencoder.encoder.vit)
    return f"{encoder.facts['model']}, sha256 {encoder.digest[:12]}"


def _teacher_dim(cfg: Params) -> int:
    size = cfg.images.size
    teacher = open_teacher(cfg.autoencoder, cfg.train_ae, cfg.on_digits, size, cfg.seed, CPU)
    assert teacher is not None  # asked for only where there is one
    return teacher.dim


def _find_inception(cfg: Params) -> str:
    weights = cfg.evaluation.weights
    network = Inception(Path(weights) if weights else None, CPU)
    return f"sha256 {network.sha256[:12]}"


def _find_reference(path: str, images: _Opened, size: int) -> str:
    return f"{open_reference(path, images['validation'], size, 1).num_images} images"


def _find_room(cfg: Params, images: _Opened) -> str:
    """Compare what the stages will write with what is free."""
    usual = DIGITS if cfg.on_digits else IMAGENET
    if len(images) == len(SPLITS):
        usual = usual._replace(
            train_images=len(images["train"]),
            held_out_images=len(images["validation"]),
            num_classes=images["train"].num_classes,
        )
    lines = plan.rows(cfg, assumed(cfg, usual), H100)
    needed = sum(line.disk_bytes for line in lines)
    free = shutil.disk_usage(state_root(find_root())).free
    least = "at least " if any(line.uncounted for line in lines) else ""
    if needed > free:
        raise ValueError(f"{least}{needed / GIB:.1f} GiB are needed, {free / GIB:.1f} are free")
    return f"{least}{needed / GIB:.3g} GiB needed, {free / GIB:.0f} free"


def _named(module: torch.nn.Module) -> str:
    count = num_parameters([module])
    return f"{type(module).__name__}, {count / 1e6:.1f} M parameters"
