"""Sample images from MAR and the decoder, without and with guidance, and judge them.

Reads   data/mar/, data/autoencoder/, images
Writes  data/samples/                       samples.npz and samples_guided.npz, as others' evaluators
                                            read them: arr_0 [n, h, w, c] uint8; and labels
        metrics/sample_eval.json            Fréchet distance, inception score, precision, recall;
                                            digits: label agreement; other images: KID; samples/s
        metrics/figures/samples.png         samples beside real images, a row for every class
        metrics/sheets/samples.png          a few samples of every class: without guidance, then with
"""

from flowprior.config import params
from flowprior.config.params import Params

params.check(__name__, every_rank=True)

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from flowprior.core import rng
from flowprior.core.device import in_turn, start_accelerator
from flowprior.core.io import atomic_dir, provenance, write_json, write_manifest
from flowprior.evaluation.judges import open_evaluator
from flowprior.evaluation.npz import NpzImages, write_npz
from flowprior.evaluation.reconstruction import to_uint8
from flowprior.figures.grid import by_class, first_of_each, pick, save_sheet
from flowprior.figures.plots import sample_figure, save_figure
from flowprior.generation.sampler import Sampler
from flowprior.images.sets import check_images, open_images
from flowprior.ops.machine import usage
from flowprior.ops.tracking import Tracker

STAGE = "sample_eval"
COLUMNS = 10
SHEET_COLUMNS = 4
"""Images of a class: in the figure; on the sheet, for each guidance."""
HEADLINE = (
    "fd_digits",
    "fd_digits_guided",
    "label_agreement",
    "label_agreement_guided",
    "fid",
    "fid_guided",
)


def main(cfg: Params, root: Path) -> None:
    """Run the stage in a workspace."""
    started = time.perf_counter()
    scale, config = cfg.scale.sample_eval, cfg.tracked(STAGE)
    state = params.state_root(root)
    accelerator = start_accelerator()
    tracker = Tracker(STAGE, config, state, enabled=accelerator.is_main_process)
    tracker.start()
    sampler = Sampler(root / "data", accelerator.device, scale.precision, scale.compile)
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
    panels, columns = [], []
    for suffix, title in (("", "no guidance"), ("_guided", f"guidance {cfg.guidance.scale:g}")):
        samples = NpzImages(root / f"data/samples/samples{suffix}.npz")
        found = evaluator.judge(samples.pieces(scale.batch_images), labels)
        metrics |= {f"{name}{suffix}": value for name, value in found.items()}
        shown = pick(samples.pieces(scale.batch_images), rows := first_of_each(labels, COLUMNS))
        panels.append((title, by_class(shown, labels[rows], COLUMNS)))
        columns.append(panels[-1][1][:, :SHEET_COLUMNS])
    save_sheet(np.concatenate(columns, axis=1), root / "metrics/sheets/samples.png")
    real = to_uint8(held_out.images(rows := first_of_each(held_out.labels, COLUMNS)))
    panels.append(("real, held out", by_class(real, held_out.labels[rows], COLUMNS)))
    names = [str(label) for label in range(len(panels[0][1]))]
    save_figure(sample_figure(panels, names), root / "metrics/figures/samples.png")
    metrics |= {
        "guidance_scale": cfg.guidance.scale,
        "num_samples": scale.num_samples,
        **evaluator.facts,
        "seed": cfg.seed,
        **usage(time.perf_counter() - started),
    }
    write_json(root / f"metrics/{STAGE}.json", metrics)
    tracker.finish(metrics, [root / "metrics/figures/samples.png"], headline=HEADLINE)


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


if __name__ == "__main__":
    main(params.load_params(), params.ROOT)
