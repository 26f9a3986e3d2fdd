"""Sample images from the generator and the decoder, without and with guidance, and judge them.

Reads   data/mar/, data/autoencoder/, images
Writes  data/samples/                       samples.npz and samples_guided.npz, as others' evaluators
                                            read them: arr_0 [n, h, w, c] uint8; and labels
        metrics/sample_eval.json            Fréchet distance, inception score, precision, recall;
                                            digits: label agreement; other images: KID
        metrics/figures/samples.png         samples beside real images, a row for every class
        metrics/sheets/samples.png          a few samples of every class: without guidance, then with
"""

from flowprior.config import launch

launch.check_params(__name__, every_rank=True)

import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from flowprior.config.presets import load_params
from flowprior.config.schema import Params
from flowprior.core.artifacts import atomic_dir, provenance, write_manifest
from flowprior.core.device import start_accelerator
from flowprior.core.root import find_root, state_root
from flowprior.evaluation.judge import Material, open_judge
from flowprior.evaluation.npz import NpzImages, write_npz
from flowprior.figures.grid import save_sheet
from flowprior.figures.plots import sample_figure, save_figure
from flowprior.figures.sheets import SHEET_COLUMNS, real_panel, sample_panel
from flowprior.generation.drawing import draw_samples
from flowprior.generation.sampler import Sampler
from flowprior.images.opening import open_both_splits
from flowprior.images.sets import check_images
from flowprior.ops.outcome import record
from flowprior.ops.tracking import Tracker

STAGE = "sample_eval"
COLUMNS = 10
"""Images of a class in the figure."""
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
    settings, state = cfg.sample_eval, state_root(root)
    accelerator = start_accelerator()
    tracker = Tracker(STAGE, cfg.tracked(STAGE), state, enabled=accelerator.is_main_process)
    tracker.start()
    device, batch = accelerator.device, settings.batch_images
    sampler = Sampler(root / "data", device, settings.precision, settings.compile)
    train, held_out = open_both_splits(cfg.image_source)
    for images, name in ((train, "images"), (held_out, "held_out_images")):
        check_images(images, sampler.images[name], root / "data/autoencoder", "train_ae")
    labels = torch.arange(settings.num_samples) % train.num_classes
    scales = {"": 1.0, "_guided": cfg.guidance.scale}
    draw = partial(draw_samples, accelerator, sampler, labels, settings, cfg.guidance, cfg.seed)
    if (
        not accelerator.is_main_process
    ):  # the first rank writes and measures, the others draw for it
        for scale in scales.values():
            list(draw(scale))
        return
    judge = open_judge(
        Material(
            train=train,
            held_out=held_out,
            size=cfg.images.size,
            batch=batch,
            evaluation=cfg.evaluation,
            reference=cfg.evaluation.reference,
            cache=state / ".ckpt/evaluation",
            device=device,
        )
    )
    rates: dict[str, float] = {}
    with atomic_dir(root / "data/samples") as out:
        for suffix, scale in scales.items():
            clock = time.perf_counter()
            write_npz(out / f"samples{suffix}.npz", draw(scale), labels)
            rate = "guided_samples_per_second" if suffix else "samples_per_second"
            rates[rate] = len(labels) / (time.perf_counter() - clock)
        made_from = provenance({**sampler.inputs, "images": held_out.digest}, "torch", "numpy")
        write_manifest(out, kind="samples", provenance=made_from)
    facts: dict[str, object] = {}
    panels = []
    for suffix, title in (("", "no guidance"), ("_guided", f"guidance {cfg.guidance.scale:g}")):
        samples = NpzImages(root / f"data/samples/samples{suffix}.npz")
        judged = judge.judge(samples.pieces(batch), labels)
        facts |= {f"{name}{suffix}": value for name, value in judged.items()}
        panels.append((title, sample_panel(samples.pieces(batch), labels, COLUMNS)))
    sheet = np.concatenate([panel[:, :SHEET_COLUMNS] for _, panel in panels], axis=1)
    save_sheet(sheet, root / "metrics/sheets/samples.png")
    panels.append(("real, held out", real_panel(held_out, COLUMNS)))
    figure = root / "metrics/figures/samples.png"
    save_figure(sample_figure(panels, [str(label) for label in range(len(panels[0][1]))]), figure)
    facts |= {
        "guidance_scale": cfg.guidance.scale,
        "num_samples": settings.num_samples,
        **judge.facts,
        "seed": cfg.seed,
    }
    seconds = time.perf_counter() - started
    record(root, STAGE, facts, tracker, seconds, figures=[figure], headline=HEADLINE, **rates)


if __name__ == "__main__":
    main(load_params(), find_root())
