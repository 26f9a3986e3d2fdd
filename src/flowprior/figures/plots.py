"""Figures of the pipeline: data in, a matplotlib figure out. Colours are Okabe and Ito's, safe for the colour-blind."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import use
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flowprior.figures.grid import tile

use("Agg")

BLUE, ORANGE = "#0072B2", "#D55E00"
DPI = 150


def alignment_figure(rows: Sequence[Mapping[str, float | int]], k: int, caption: str) -> Figure:
    """Alignment loss and mean log r_k of held-out latents over training, on two axes (Fig. 4, arXiv:2506.05240)."""
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    steps = [row["step"] for row in rows]
    curves = (
        (left, "alignment_loss", "alignment loss (mean over dims)", BLUE, "-", "o"),
        (right, f"mean_log_r{k}", f"mean log $r_{{{k}}}$ to the targets", ORANGE, "--", "s"),
    )
    for axis, name, label, colour, line, marker in curves:
        values = [row[name] for row in rows]
        axis.plot(steps, values, line, color=colour, marker=marker, markersize=3)
        axis.set_ylabel(label, color=colour)
        axis.tick_params(axis="y", colors=colour)
        axis.spines["top"].set_visible(False)
    left.set_xlabel("optimiser step")
    left.annotate(caption, (0.98, 0.96), xycoords="axes fraction", ha="right", va="top", fontsize=8)
    return figure


def sample_figure(panels: Sequence[tuple[str, NDArray[np.uint8]]], labels: Sequence[str]) -> Figure:
    """Panels side by side, each a grid of images: a row for every class, labelled at the left.

    Args:
        panels: Title and images [rows, columns, h, w, c], bytes.
        labels: Name of every row.
    """
    rows, columns = panels[0][1].shape[:2]
    figure = Figure(figsize=(len(panels) * columns * 0.36 + 0.5, rows * 0.36 + 0.4))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    figure.subplots_adjust(left=0.04, right=0.99, bottom=0.02, top=0.92, wspace=0.06)
    for axis, (title, images) in zip(axes, panels, strict=True):
        axis.imshow(tile(images), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
    pitch = images.shape[2] + 1
    axes[0].set_yticks([row * pitch + pitch / 2 for row in range(rows)], list(labels), fontsize=9)
    axes[0].tick_params(axis="y", length=0)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG without anything that changes from run to run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
