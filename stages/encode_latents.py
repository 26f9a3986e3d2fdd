"""Encode all images, and measure what the latents are and what they keep.

Reads   images, data/autoencoder/, data/targets/, data/flow_prior/
Writes  data/latents/                  shards: latents float16 [n, 1 or 2, tokens, d] (image, flip), labels;
                                       mean and std of the training latents in the manifest
        metrics/encode_latents.json    rFD or rFID, PSNR, SSIM, latent statistics, linear probe; how held-out latents
                                       compare with held-out targets, and a verdict in one word
        metrics/sheets/reconstructions.png  a few held-out images of every class, each with its reconstruction behind it
"""

from flowprior.config import launch

launch.check_params(__name__, every_rank=True)

import time
from pathlib import Path

from flowprior.autoencoder.encoding import Encoding
from flowprior.autoencoder.registry import autoencoder_from
from flowprior.config.presets import load_params
from flowprior.config.schema import Params
from flowprior.core.artifacts import atomic_dir, provenance
from flowprior.core.device import start_accelerator
from flowprior.core.root import find_root, state_root
from flowprior.core.shard_writer import ShardWriter, to_float16
from flowprior.core.shards import ShardReader
from flowprior.core.trained import load_trained
from flowprior.evaluation.judge import Material, open_judge
from flowprior.evaluation.latents import check_held_out, match_metrics, probe_accuracy
from flowprior.evaluation.reconstruction import reconstruction_metrics
from flowprior.figures.grid import save_sheet
from flowprior.figures.sheets import reconstruction_sheet
from flowprior.images.opening import images_digest, open_both_splits
from flowprior.images.sets import SPLITS, check_images, classes_of
from flowprior.ops.outcome import record
from flowprior.ops.tracking import Tracker
from flowprior.prior.flow_prior import FlowPrior
from flowprior.stats.moments import Moments, moments_metrics

STAGE = "encode_latents"
HEADLINE = (
    "psnr_db",
    "rfd_digits",
    "rfid",
    "std_ratio_median",
    "latent_recall",
    "nll_gap_nats",
    "verdict",
    "linear_probe_accuracy",
)


def main(cfg: Params, root: Path) -> None:
    """Run the stage in a workspace."""
    started = time.perf_counter()
    settings, state = cfg.encode_latents, state_root(root)
    accelerator = start_accelerator(settings.precision)
    device = accelerator.device
    tracker = Tracker(STAGE, cfg.tracked(STAGE), state, enabled=accelerator.is_main_process)
    tracker.start()
    where = root / "data/autoencoder"
    trained = load_trained(where, "autoencoder", "the stage `train_ae`")
    autoencoder = trained.build(autoencoder_from, where).to(device)
    targets = ShardReader.open(root / "data/targets", "targets", "the stage `project`")
    prior = FlowPrior.load(root / "data/flow_prior")
    check_held_out(targets)
    train, held_out = open_both_splits(cfg.image_source)
    for images, name in ((train, "images"), (held_out, "held_out_images")):
        check_images(images, trained.inputs[name], where, "train_ae")
    encoding = Encoding(autoencoder, accelerator, settings.batch_images, settings.flip)
    if not accelerator.is_main_process:
        encoding.assist(train, held_out)
        return
    judge = open_judge(
        Material(
            train=train,
            held_out=held_out,
            size=cfg.images.size,
            batch=settings.batch_images,
            evaluation=cfg.evaluation,
            reference=None,
            cache=state / ".ckpt/evaluation",
            device=device,
        )
    )
    moments: Moments | None = None
    with atomic_dir(root / "data/latents") as out:
        writer = ShardWriter(out)
        for split, images in zip(SPLITS, (train, held_out), strict=True):
            for piece, latents in encoding.encoded(images, f"{STAGE} {split}"):
                if split == "train":
                    moments = moments or Moments(latents.shape[-1])
                    moments.update(latents.flatten(0, -2))
                labels = images.labels[piece.start : piece.stop].numpy()
                writer.write(split, {"latents": to_float16(latents), "labels": labels})
        if moments is None:
            raise ValueError("there are no training images")
        digests = {"train_images": train.digest, "validation_images": held_out.digest}
        made_from = {"autoencoder": trained.digest, **digests}
        writer.close(
            kind="latents",
            provenance=provenance(made_from, "torch", "timm", "numpy"),
            **classes_of(train),
            mean=moments.mean.tolist(),
            std=moments.std,
        )
    num_damaged = encoding.damaged(train, held_out)
    sheet = reconstruction_sheet(encoding.restored, held_out)
    save_sheet(sheet, root / "metrics/sheets/reconstructions.png")
    latents = ShardReader.open(root / "data/latents", "latents", f"the stage `{STAGE}`")
    match = match_metrics(latents, targets, prior.to(device), cfg.seed)
    facts = {
        **reconstruction_metrics(
            encoding.restored, held_out, judge, settings.batch_images, as_bytes=not cfg.on_digits
        ),
        "linear_probe_accuracy": probe_accuracy(latents),
        **match,
        **{f"latent_{name}": value for name, value in moments_metrics(moments).items()},
        "num_train_latents": moments.count,
        "num_images": len(held_out),
        "images_digest": images_digest(train, held_out),
        "num_corrupt_images": num_damaged,
        **judge.facts,
        "seed": cfg.seed,
    }
    record(root, STAGE, facts, tracker, time.perf_counter() - started, headline=HEADLINE)


if __name__ == "__main__":
    main(load_params(), find_root())
