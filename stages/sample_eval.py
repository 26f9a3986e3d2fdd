"""Sample images from MAR and the decoder, without and with guidance, and judge them.

Reads   data/mar/, data/autoencoder/, images
Writes  data/samples/                       samples.npz: arr_0 and guided [n, h, w, c] uint8, labels
        metrics/sample_eval.json            Fréchet distance, inception score, precision, recall,
        label agreement; samples/s metrics/figures/samples.png         samples beside real images, a
        row for every class
"""

import params
from params import Params

params.check(__name__)

import io
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from evaluator import Evaluator, open_evaluator
from figures import sample_figure, save_figure
from flowprior import rng
from flowprior.data.images import batches, open_images
from flowprior.data.trained import load_trained
from flowprior.io import atomic_dir, provenance, write_atomic, write_json, write_manifest
from flowprior.metrics.generation import generation_metrics, label_agreement
from flowprior.metrics.reconstruction import to_uint8
from flowprior.models.autoencoder import Autoencoder, autoencoder_from
from flowprior.models.mar import MAR, MARShape
from flowprior.training.device import start_accelerator
from flowprior.training.tracking import Tracker

STAGE = "sample_eval"
GRID_COLUMNS = 10


class Sampler:
    """Labels in, images out: MAR's tokens, scaled back and decoded."""

    def __init__(self, cfg: Params, root: Path, device: torch.device) -> None:
        self._cfg = cfg
        self._device = device
        where = root / "data/autoencoder", root / "data/mar"
        autoencoder = load_trained(where[0], "autoencoder", "the stage `train_ae`")
        mar = load_trained(where[1], "mar", "the stage `train_mar`")
        self.inputs = {"autoencoder": autoencoder.digest, "mar": mar.digest}
        self._autoencoder: Autoencoder = autoencoder.into(
            autoencoder_from(autoencoder.config), where[0]
        ).to(device)
        self._mar = mar.into(MAR(MARShape(**mar.config["shape"])), where[1]).to(device)
        self._mean = torch.tensor(mar.config["latents_mean"], device=device)
        self._std = float(mar.config["latents_std"])

    @torch.no_grad()
    def __call__(self, labels: Tensor, guidance_scale: float) -> Tensor:
        """Images [n, c, h, w] as bytes, one for each label; equal seeds draw equal noise at every scale."""
        scale = self._cfg.scale.sample_eval
        images = []
        parts = labels.split(scale.batch_images)
        for index, part in enumerate(tqdm(parts, desc=f"{STAGE} {guidance_scale:g}", disable=None)):
            tokens = self._mar.sample(
                part.to(self._device),
                rng.generator(self._cfg.seed, STAGE, index),
                num_iterations=scale.num_iterations,
                head_steps=scale.head_steps,
                solver=scale.solver,
                guidance_scale=guidance_scale,
                guidance_schedule=self._cfg.guidance.schedule,
                temperature=scale.temperature,
            )
            images.append(to_uint8(self._autoencoder.decode(tokens * self._std + self._mean)))
        return torch.cat(images)


def main(cfg: Params, root: Path) -> None:
    """Run the stage in a workspace."""
    started = time.perf_counter()
    scale, config = cfg.scale.sample_eval, cfg.tracked(STAGE)
    tracker = Tracker(STAGE, config, params.state_root(root))
    tracker.start()
    sampler = Sampler(cfg, root, start_accelerator().device)
    train, held_out = (
        open_images(split=split, **cfg.image_source) for split in ("train", "validation")
    )
    labels = torch.arange(scale.num_samples) % train.num_classes
    evaluator = open_evaluator(cfg.images.source, train)
    pieces = batches(len(held_out), scale.batch_images)
    real = torch.cat([to_uint8(held_out.images(piece)) for piece in pieces])
    metrics: dict[str, object] = {}
    samples = {}
    for suffix, guidance_scale in (("", 1.0), ("_guided", cfg.guidance.scale)):
        clock = time.perf_counter()
        samples[suffix] = sampler(labels, guidance_scale)
        rate = "guided_samples_per_second" if suffix else "samples_per_second"
        metrics[rate] = len(labels) / (time.perf_counter() - clock)
        metrics |= judge(samples[suffix], labels, real, evaluator, suffix)
    with atomic_dir(root / "data/samples") as out:
        buffer = io.BytesIO()
        np.savez(
            buffer,
            arr_0=_channels_last(samples[""]),
            guided=_channels_last(samples["_guided"]),
            labels=labels.numpy(),
        )
        write_atomic(out / "samples.npz", buffer.getvalue())
        inputs = {**sampler.inputs, "images": held_out.digest}
        write_manifest(out, kind="samples", provenance=provenance(config, inputs, "torch", "numpy"))
    panels = [
        ("no guidance", _grid(samples[""], labels, train.num_classes)),
        (f"guidance {cfg.guidance.scale:g}", _grid(samples["_guided"], labels, train.num_classes)),
        ("real, held out", _grid(real, held_out.labels, train.num_classes)),
    ]
    rows = [str(label) for label in range(len(panels[0][1]))]
    save_figure(sample_figure(panels, rows), root / "metrics/figures/samples.png")
    metrics |= {
        "guidance_scale": cfg.guidance.scale,
        "num_samples": scale.num_samples,
        "num_real": len(real),
        "extractor": evaluator.extractor,
        "seed": cfg.seed,
        "seconds": time.perf_counter() - started,
    }
    write_json(root / f"metrics/{STAGE}.json", metrics)
    tracker.finish(metrics, [root / "metrics/figures/samples.png"])


def judge(
    samples: Tensor, labels: Tensor, real: Tensor, evaluator: Evaluator, suffix: str
) -> dict[str, float]:
    """All figures of one set of samples, `suffix` behind every key."""
    if evaluator.extractor is None or evaluator.classifier is None:
        return {}
    with torch.no_grad():
        logits = evaluator.classifier(samples.float() / 127.5 - 1)
    return {
        **generation_metrics(samples, real, evaluator.extractor, suffix=suffix),
        f"label_agreement{suffix}": label_agreement(logits, labels),
    }


def _channels_last(images: Tensor) -> NDArray[np.uint8]:
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def _grid(images: Tensor, labels: Tensor, num_classes: int) -> NDArray[np.uint8]:
    """The first few images of the first ten classes, [classes, columns, h, w, c]; grey where there are too few."""
    pages = _channels_last(images)
    grid = np.full((min(num_classes, 10), GRID_COLUMNS, *pages.shape[1:]), 160, dtype=np.uint8)
    for label in range(len(grid)):
        chosen = pages[(labels == label).numpy()][:GRID_COLUMNS]
        grid[label, : len(chosen)] = chosen
    return grid


if __name__ == "__main__":
    main(params.load_params(), params.ROOT)
