"""Encode all images, and measure what the latents are and what they keep.

Reads   images, data/autoencoder/, data/targets/, data/flow_prior/
Writes  data/latents/                  shards: latents float16 [n, 1 or 2, tokens, d] (image, flip),
labels;
                                       mean and std of the training latents in the manifest
        metrics/encode_latents.json    rFD or rFID, PSNR, SSIM, latent statistics, linear probe; how held-out latents
                                       compare with held-out targets, and whether they look collapsed
        metrics/sheets/reconstructions.png  a few held-out images of every class, each with its reconstruction behind it
"""

from flowprior.config import params
from flowprior.config.params import Params

params.check(__name__, every_rank=True)

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from flowprior.autoencoder.vit import Autoencoder, autoencoder_from
from flowprior.core import rng
from flowprior.core.device import in_turn, start_accelerator
from flowprior.core.io import atomic_dir, provenance, write_json
from flowprior.core.shards import Column, ShardReader, ShardWriter, to_float16
from flowprior.core.trained import load_trained
from flowprior.evaluation.judges import Evaluator, open_evaluator
from flowprior.evaluation.probe import linear_probe_accuracy
from flowprior.evaluation.reconstruction import from_uint8, psnr_db, ssim, to_uint8
from flowprior.figures.grid import by_class, first_of_each, save_sheet
from flowprior.images.sets import (
    SPLITS,
    ImageSet,
    Split,
    batches,
    check_images,
    open_images,
)
from flowprior.ops.machine import usage
from flowprior.ops.tracking import Tracker
from flowprior.prior.flow_prior import FlowPrior
from flowprior.stats.coverage import collapse_signs, match_report
from flowprior.stats.moments import Moments

STAGE = "encode_latents"
NEIGHBOURS = 5
"""k of the coverage metrics."""
AMBIGUOUS = ("precision", "recall", "recall_control", "density")
"""Of latents against targets; sample_eval has keys of these names, of samples against images."""
SHEET_COLUMNS = 4
"""Images of a class on the sheet, each with its reconstruction."""
HEADLINE = (
    "psnr_db",
    "rfd_digits",
    "rfid",
    "std_ratio_median",
    "latent_recall",
    "nll_gap_nats",
    "collapsed",
    "linear_probe_accuracy",
)
MATCH_VECTORS = 5000
NLL_VECTORS = 1000


def main(cfg: Params, root: Path) -> None:
    """Run the stage in a workspace."""
    started = time.perf_counter()
    scale, config = cfg.scale.encode_latents, cfg.tracked(STAGE)
    state = params.state_root(root)
    accelerator = start_accelerator(scale.precision)
    tracker = Tracker(STAGE, config, state, enabled=accelerator.is_main_process)
    tracker.start()
    where = root / "data/autoencoder"
    trained = load_trained(where, "autoencoder", "the stage `train_ae`")
    device = accelerator.device
    autoencoder = trained.build(autoencoder_from, where).to(device)
    targets = ShardReader.open(root / "data/targets", "targets", "the stage `project`")
    prior = FlowPrior.load(root / "data/flow_prior")
    held_out = len(targets.column("validation", "vectors"))
    if held_out <= NEIGHBOURS:
        raise ValueError(
            f"data/targets holds out {held_out} vectors, neighbours with k = {NEIGHBOURS} need more; "
            "bring more features or raise max_vectors, and run `dvc repro extract_features`"
        )
    images = {split: open_images(split=split, **cfg.image_source) for split in SPLITS}
    for split, name in zip(SPLITS, ("images", "held_out_images"), strict=True):
        check_images(images[split], trained.inputs[name], where, "train_ae")

    def encoded(split: Split) -> Iterator[tuple[range, Tensor]]:
        """Latents of a split, piece by piece; the ranks encode in turn, the first has them."""
        pieces = list(batches(len(images[split]), scale.batch_images))
        bar = tqdm(
            pieces, desc=f"{STAGE} {split}", disable=None if accelerator.is_main_process else True
        )

        def work(index: int) -> Tensor:
            with accelerator.autocast():
                views = images[split].images(pieces[index]).to(device)
                return encode(autoencoder, views, scale.flip).cpu()

        return zip(bar, in_turn(accelerator, len(pieces), work), strict=False)

    def restored(originals: Tensor) -> Tensor:
        """Images there and back, float32 on the CPU."""
        with accelerator.autocast():
            output: Tensor = autoencoder(originals.to(device))[0]
        return output.float().cpu()

    def damaged() -> int:
        """Images that could not be decoded, of all ranks; each goes through it."""
        names = {name for part in images.values() for name in part.corrupt}
        return len(set().union(*in_turn(accelerator, accelerator.num_processes, lambda _: names)))

    if not accelerator.is_main_process:
        for split in SPLITS:
            for _ in encoded(split):
                pass
        damaged()
        return
    evaluator = open_evaluator(
        cfg,
        images["train"],
        images["validation"],
        scale.batch_images,
        state / ".ckpt/evaluation",
        device,
    )
    moments: Moments | None = None
    with atomic_dir(root / "data/latents") as out:
        writer = ShardWriter(out)
        for split in SPLITS:
            for piece, latents in encoded(split):
                if split == "train":
                    moments = moments or Moments(latents.shape[-1])
                    moments.update(latents.flatten(0, -2))
                labels = images[split].labels[piece.start : piece.stop]
                writer.write(
                    split,
                    {
                        "latents": to_float16(latents),
                        "labels": labels.numpy(),
                    },
                )
        if moments is None:
            raise ValueError("there are no training images")
        inputs = {
            "autoencoder": trained.digest,
            **{f"{split}_images": images[split].digest for split in SPLITS},
        }
        writer.close(
            kind="latents",
            provenance=provenance(cfg.shaping(STAGE), inputs, "torch", "timm", "numpy"),
            num_classes=images["train"].num_classes,
            mean=moments.mean.tolist(),
            std=moments.std,
        )
    num_damaged = damaged()
    sheet = root / "metrics/sheets/reconstructions.png"
    save_sheet(reconstruction_sheet(restored, images["validation"]), sheet)
    latents = ShardReader.open(root / "data/latents", "latents", f"the stage `{STAGE}`")
    match = match_metrics(latents, targets, prior.to(device), cfg.seed)
    stds = moments.covariance.diagonal().sqrt()
    metrics = {
        **reconstruction_metrics(
            restored,
            images["validation"],
            evaluator,
            scale.batch_images,
            as_bytes=not cfg.on_digits,
        ),
        "linear_probe_accuracy": _probe(latents),
        **match,
        "latent_std": moments.std,
        "latent_std_min": float(stds.min()),
        "latent_std_max": float(stds.max()),
        "latent_mean_norm": float(moments.mean.norm()),
        "num_train_latents": moments.count,
        "num_images": len(images["validation"]),
        "num_corrupt_images": num_damaged,
        **evaluator.facts,
        "seed": cfg.seed,
        **usage(time.perf_counter() - started),
    }
    write_json(root / f"metrics/{STAGE}.json", metrics)
    tracker.finish(metrics, headline=HEADLINE)


@torch.no_grad()
def encode(autoencoder: Autoencoder, images: Tensor, flip: bool) -> Tensor:
    """Latents [b, 1 or 2, n, d] of images and, behind them, of their mirror images; a posterior gives its mean."""
    views = [images, images.flip(-1)] if flip else [images]
    return torch.stack([autoencoder.encode(view).mean.float() for view in views], dim=1)


@torch.no_grad()
def reconstruction_metrics(
    restore: Callable[[Tensor], Tensor],
    images: ImageSet,
    evaluator: Evaluator,
    batch: int,
    *,
    as_bytes: bool,
) -> dict[str, float | None]:
    """PSNR, SSIM and, where there is an evaluator, the Fréchet distance of held-out reconstructions.

    With `as_bytes`, SoftVQ's protocol: all figures are of the reconstruction as a picture has it,
    rounded to 256 levels.
    """
    psnrs, ssims = [], []

    def restored() -> Iterator[Tensor]:
        for piece in batches(len(images), batch):
            original = images.images(piece)
            output = restore(original)
            rounded = to_uint8(output)
            output = from_uint8(rounded) if as_bytes else output
            psnrs.append(psnr_db(output, original))
            ssims.append(ssim(output, original))
            yield rounded

    found = evaluator.judge(restored())
    return {
        **{f"r{name}": value for name, value in found.items()},
        "psnr_db": float(torch.cat(psnrs).mean()),
        "ssim": float(torch.cat(ssims).mean()),
        "lpips": None,  # VGG's five poolings leave nothing of 8 x 8 pixels
    }


@torch.no_grad()
def reconstruction_sheet(
    restore: Callable[[Tensor], Tensor], images: ImageSet
) -> NDArray[np.uint8]:
    """The first images of each class, each with its reconstruction behind it, [classes, columns, h, w, c]."""
    rows = first_of_each(images.labels, SHEET_COLUMNS)
    originals = images.images(rows)
    pair = [to_uint8(part) for part in (originals, restore(originals))]
    labels = images.labels[rows].repeat_interleave(2)
    return by_class(torch.stack(pair, 1).flatten(0, 1), labels, 2 * SHEET_COLUMNS)


def match_metrics(
    latents: ShardReader, targets: ShardReader, prior: FlowPrior, seed: int
) -> dict[str, float | int]:
    """How held-out latents compare with held-out targets; a loud warning where they look collapsed.

    Training targets are the control: what latents that match perfectly would give.
    """
    tokens = latents.column("validation", "latents")
    per_image = tokens.shape[2]
    mine = _some(tokens, -(-MATCH_VECTORS // per_image), seed)[:, 0]
    mine = mine.reshape(-1, mine.shape[-1]).astype(np.float32)
    held_out = _some(targets.column("validation", "vectors"), MATCH_VECTORS, seed)
    control = targets.column("train", "vectors").sample(
        MATCH_VECTORS, rng.generator(seed, STAGE, "control")
    )
    report = match_report(mine, held_out, control.numpy(), seed=seed, k=NEIGHBOURS)
    device = prior.projection.matrix.device
    nll, target_nll = (
        float(prior.nll(torch.from_numpy(part).to(device)).double().mean())
        for part in (mine[:NLL_VECTORS], held_out[:NLL_VECTORS])
    )
    signs = collapse_signs(report, nll - target_nll)
    for sign in signs:
        print(f"{STAGE}: WARNING the latents look collapsed: {sign}", file=sys.stderr)
    return {
        **{f"latent_{key}" if key in AMBIGUOUS else key: value for key, value in report.items()},
        "nll_nats": nll,
        "nll_targets_nats": target_nll,
        "nll_gap_nats": nll - target_nll,
        "collapsed": int(bool(signs)),
    }


def _some(column: Column, count: int, seed: int) -> NDArray[Any]:
    """At most so many rows, at random and in random order."""
    order = torch.randperm(len(column), generator=rng.generator(seed, STAGE, "some"))
    return column.gather(order[:count].numpy())


def _probe(latents: ShardReader) -> float:
    """Linear probe on the latents of the unflipped images."""
    data = []
    for split in SPLITS:
        vectors = latents.column(split, "latents").read()[:, 0]
        data += [vectors.reshape(len(vectors), -1), latents.column(split, "labels").read()]
    return linear_probe_accuracy(*data)


if __name__ == "__main__":
    main(params.load_params(), params.ROOT)
