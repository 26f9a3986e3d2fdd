"""Open everything that a run will need, before the run: images, weights, packages, room on the disk.

Reads   params.yaml, and what it names
Prints  a line for each thing; exit status 1 where one is missing

    make preflight PRESET=imagenet

Weights that have to be downloaded are downloaded now, into the caches where the stages look.
"""

from flowprior.config import params
from flowprior.config.params import Params, ParamsError

params.check(__name__)

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from extract_features import open_source
from flowprior.costs import plan
from flowprior.costs import stages as costs
from flowprior.encoders.networks import trained_transformer
from flowprior.evaluation.inception import Inception
from flowprior.evaluation.reference import open_reference
from flowprior.images.opening import open_images
from flowprior.images.sets import SPLITS, ImageSet
from flowprior.reconstruction.discriminator import build_discriminator
from flowprior.reconstruction.perceptual import build_perceptual
from train_ae import build_trainee, open_teacher, shape_of

CPU = torch.device("cpu")
GIB = 2**30


def checks(cfg: Params) -> Iterator[tuple[str, Callable[[], str]]]:
    """What to look at, and what says how it was found or raises."""
    images: dict[str, ImageSet] = {}

    def find_images() -> str:
        for split in SPLITS:
            images[split] = open_images(split=split, **cfg.image_source)
            images[split].images([0])
        counts = " and ".join(f"{len(images[split])} {split}" for split in SPLITS)
        return f"{counts}, {images['train'].num_classes} classes"

    def find_prior() -> str:
        facts = open_source(cfg, CPU).facts
        shown = {key: value[:12] if key == "sha256" else value for key, value in facts.items()}
        return ", ".join(f"{key} {value}" for key, value in shown.items() if "_images" not in key)

    yield "images", find_images
    yield f"prior {cfg.prior.source}", find_prior
    scale = cfg.scale.train_ae
    if scale.encoder is not None:
        yield "encoder", lambda: _find_encoder(cfg)
    if cfg.autoencoder.bottleneck == "softvq" and scale.softvq.representation_weight:
        yield "teacher", lambda: f"{_teacher_dim(cfg)} channels"
    if scale.perceptual.weight:
        pretrained = scale.perceptual.pretrained
        yield "LPIPS", lambda: _named(build_perceptual(pretrained=pretrained).network)
    if scale.adversarial.weight:
        backbone, trained = scale.adversarial.backbone, scale.adversarial.pretrained
        yield (
            "discriminator",
            lambda: _named(build_discriminator(backbone, pretrained=trained)[0].vit),
        )
    if cfg.evaluation.extractor == "auto" and not cfg.on_digits:
        yield "Inception", lambda: _find_inception(cfg)
        if cfg.evaluation.reference is not None:
            reference, size = cfg.evaluation.reference, cfg.scale.images.size
            yield (
                "reference",
                lambda: (
                    f"{open_reference(reference, images['validation'], size, 1).num_images} images"
                ),
            )
    yield "disk", lambda: _find_room(cfg, images)


def _find_encoder(cfg: Params) -> str:
    scale = cfg.scale.train_ae
    encoder = trained_transformer(str(scale.encoder), cfg.scale.images.size, scale.patch_size)
    with torch.device("meta"):
        trainee = build_trainee(cfg, shape_of(cfg, 3, cfg.scale.project.dim), None)
    encoder.check(trainee.autoencoder.encoder.vit)
    return f"{encoder.facts['model']}, sha256 {encoder.digest[:12]}"


def _teacher_dim(cfg: Params) -> int:
    teacher = open_teacher(cfg, CPU)
    assert teacher is not None  # asked for only where there is one
    return teacher.dim


def _find_inception(cfg: Params) -> str:
    weights = cfg.evaluation.weights
    network = Inception(Path(weights) if weights else None, CPU)
    return f"sha256 {network.sha256[:12]}"


def _find_room(cfg: Params, images: dict[str, ImageSet]) -> str:
    usual = costs.DIGITS if cfg.on_digits else costs.IMAGENET
    facts = usual
    if len(images) == len(SPLITS):
        facts = usual._replace(
            train_images=len(images["train"]),
            held_out_images=len(images["validation"]),
            num_classes=images["train"].num_classes,
        )
    needed = sum(line.disk_bytes for line in plan.rows(cfg, facts, plan.H100))
    free = shutil.disk_usage(params.state_root(params.ROOT)).free
    if needed > free:
        raise ValueError(f"{needed / GIB:.1f} GiB are needed, {free / GIB:.1f} are free")
    return f"{needed / GIB:.3g} GiB needed, {free / GIB:.0f} free"


def _named(module: torch.nn.Module) -> str:
    count = sum(p.numel() for p in module.parameters())
    return f"{type(module).__name__}, {count / 1e6:.1f} M parameters"


def main(arguments: Sequence[str] | None = None) -> None:
    """Look at everything; a mistake in the parameters is a message and exit status 2."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", help="default: that of params.yaml")
    options = parser.parse_args(arguments)
    try:
        tree = params.read_yaml(params.ROOT / "params.yaml")
        if options.preset and isinstance(tree, dict):
            tree = {**tree, "preset": options.preset}
        cfg = params.parse(tree)
    except ParamsError as error:
        print(f"params.yaml cannot be used:\n{error}", file=sys.stderr)
        sys.exit(2)
    failed = 0
    for name, look in checks(cfg):
        try:
            print(f"  ok       {name}: {look()}", flush=True)
        except Exception as error:  # whatever is wrong with one, the others are worth a look
            failed += 1
            print(f"  MISSING  {name}: {' '.join(str(error).split())}", flush=True)
    print(f"{failed} missing" if failed else f"all there for preset {cfg.preset}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
