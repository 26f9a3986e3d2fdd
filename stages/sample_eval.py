"""Sample images from MAR and the decoder, without and with guidance, and judge them.

Reads   data/mar/, data/autoencoder/, images
Writes  data/samples/                       samples.npz and samples_guided.npz, as others' evaluators
                                            read them: arr_0 [n, h, w, c] uint8; and labels
        metrics/sample_eval.json            Fréchet distance, inception score, precision, recall;
                                            digits: label agreement; other images: KID; samples/s
        metrics/figures/samples.png         samples beside real images, a row for every class
"""

import params
from params import Params

params.check(__name__, every_rank=True)

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from evaluator import open_evaluator
from figures import sample_figure, save_figure
from flowprior import rng
from flowprior.data.images import check_images, open_images
from flowprior.io import atomic_dir, provenance, write_json, write_manifest
from flowprior.metrics.npz import NpzImages, write_npz
from flowprior.metrics.reconstruction import to_uint8
from flowprior.sampling import Sampler
from flowprior.training.device import in_turn, start_accelerator
from flowprior.training.tracking import Tracker

STAGE = "sample_eval"
GRID_ROWS = GRID_COLUMNS = 10


def main(cfg: Params, root: Path) -> None:
    """Run the stage in a workspace."""
    started = time.perf_counter()
    scale, config = cfg.scale.sample_eval, cfg.tracked(STAGE)
    state = params.state_root(root)
    accelerator = start_accelerator()
    tracker = Tracker(STAGE, config, state, enabled=accelerator.is_main_process)
    tracker.start()
    sampler = Sampler(root / "data", accelerator.device, scale.precision)
    train, held_out = (
        open_images(split=split, **cfg.image_source) for split in ("train", "validation")
    )
    for images, name in ((train, "images"), (held_out, "held_out_images")):
        check_images(images, sampler.images[name], root / "data/autoencoder", "train_ae")
    labels = torch.arange(scale.num_samples) % train.num_classes
    scales = {"": 1.0, "_guided": cfg.guidance.scale}
    if not accelerator.is_main_process:
        for guidance_scale in scales.values():
            for _ in draw(accelerator, sampler, labels, cfg, guidance_scale):
                pass
        return
    evaluator = open_evaluator(
        cfg,
        train,
        held_out,
        scale.batch_images,
        state / ".ckpt/evaluation",
        accelerator.device,
        reference=cfg.evaluation.reference,
    )
    metrics: dict[str, object] = {}
    with atomic_dir(root / "data/samples") as out:
        for suffix, guidance_scale in scales.items():
            clock = time.perf_counter()
            pieces = draw(accelerator, sampler, labels, cfg, guidance_scale)
            write_npz(out / f"samples{suffix}.npz", pieces, labels)
            rate = "guided_samples_per_second" if suffix else "samples_per_second"
            metrics[rate] = len(labels) / (time.perf_counter() - clock)
        inputs = {**sampler.inputs, "images": held_out.digest}
        made_from = provenance(cfg.shaping(STAGE), inputs, "torch", "numpy")
        write_manifest(out, kind="samples", provenance=made_from)
    num_rows = min(train.num_classes, GRID_ROWS)
    panels = []
    for suffix, title in (("", "no guidance"), ("_guided", f"guidance {cfg.guidance.scale:g}")):
        samples = NpzImages(root / f"data/samples/samples{suffix}.npz")
        found = evaluator.judge(samples.pieces(scale.batch_images), labels)
        metrics |= {f"{name}{suffix}": value for name, value in found.items()}
        shown = _pick(samples.pieces(scale.batch_images), rows := _shown(labels))
        panels.append((title, _grid(shown, labels[rows], num_rows)))
    real = to_uint8(held_out.images(rows := _shown(held_out.labels)))
    panels.append(("real, held out", _grid(real, held_out.labels[rows], num_rows)))
    names = [str(label) for label in range(num_rows)]
    save_figure(sample_figure(panels, names), root / "metrics/figures/samples.png")
    metrics |= {
        "guidance_scale": cfg.guidance.scale,
        "num_samples": scale.num_samples,
        **evaluator.facts,
        "seed": cfg.seed,
        "seconds": time.perf_counter() - started,
    }
    write_json(root / f"metrics/{STAGE}.json", metrics)
    tracker.finish(metrics, [root / "metrics/figures/samples.png"])


def draw(
    accelerator: Accelerator,
    sampler: Sampler,
    labels: Tensor,
    cfg: Params,
    guidance_scale: float,
) -> Iterator[Tensor]:
    """Images in bytes, a batch at a time; equal seeds draw equal noise at every guidance scale.

    The ranks draw batches in turn, the first has them.
    """
    scale = cfg.scale.sample_eval
    parts = labels.split(scale.batch_images)

    def work(index: int) -> Tensor:
        return sampler(
            parts[index],
            rng.generator(cfg.seed, STAGE, index),
            num_iterations=scale.num_iterations,
            head_steps=scale.head_steps,
            final_head_steps=scale.final_head_steps,
            solver=scale.solver,
            churn=scale.churn,
            guidance_scale=guidance_scale,
            guidance_schedule=cfg.guidance.schedule,
            guidance_interval=(cfg.guidance.low, cfg.guidance.high),
            temperature=scale.temperature,
        ).cpu()

    pieces = in_turn(accelerator, len(parts), work)
    hidden = None if accelerator.is_main_process else True
    yield from tqdm(pieces, desc=f"{STAGE} {guidance_scale:g}", total=len(parts), disable=hidden)


def _shown(labels: Tensor) -> Tensor:
    """Rows of the first few images of the first ten classes, ascending."""
    rows = [(labels == label).nonzero()[:GRID_COLUMNS, 0] for label in range(GRID_ROWS)]
    return torch.cat(rows).sort().values


def _pick(pieces: Iterable[Tensor], rows: Tensor) -> Tensor:
    """Images by ascending rows out of pieces that come in order; none is asked for behind the last."""
    picked = []
    start = 0
    for piece in pieces:
        picked.append(piece[rows[(rows >= start) & (rows < start + len(piece))] - start])
        start += len(piece)
        if start > rows[-1]:
            break
    return torch.cat(picked)


def _grid(images: Tensor, labels: Tensor, num_rows: int) -> NDArray[np.uint8]:
    """Images by class, [classes, columns, h, w, c]; grey where there are too few."""
    pages = images.permute(0, 2, 3, 1).numpy()
    grid = np.full((num_rows, GRID_COLUMNS, *pages.shape[1:]), 160, dtype=np.uint8)
    for label in range(num_rows):
        chosen = pages[(labels == label).numpy()]
        grid[label, : len(chosen)] = chosen
    return grid


if __name__ == "__main__":
    main(params.load_params(), params.ROOT)
