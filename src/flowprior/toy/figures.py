"""Figures of the 2-D study: data in, a matplotlib figure out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from flowprior.figures.plots import BLUE, ORANGE
from flowprior.toy.maps import TargetMap

Axes2D = tuple[Tensor, Tensor]
"""Coordinates of the columns and of the rows."""
GREEN, GREY = "#009E73", "#666666"
REGION_COLOURS = {"off_target": GREY, "targets": BLUE, "latents": ORANGE}
NAMES = {
    "alignment": "$L$, the alignment loss",
    "alignment_minus_divergence": "$L - C$",
    "weighted": "$L$ with $w = t/(1-t)$",
    "closed_form": "closed-form velocity",
    "trained": "trained velocity",
    "targets": "target samples",
    "latents": "latents",
    "off_target": "off target",
}
LOSS_LABEL = "alignment loss (mean over dims)"
SHOWN_LOOKS = 6
"""Looks that a path is shown by."""


def study_figure(
    shown: TargetMap, losses: Tensor, points: Tensor, curve: Sequence[Mapping[str, float | int]]
) -> Figure:
    """NLL map with the points, loss map with the data, both over the steps (Fig. 3, arXiv:2506.05240).

    Args:
        shown: The target in its window.
        losses: Alignment loss of the window's points, [side^2], mean over dims.
        points: [n, 2], where they ended.
        curve: Rows with step, alignment_loss and nll.
    """
    figure = Figure(figsize=(11.5, 3.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
    loss_map = losses.view_as(shown.nll)
    of = "exact" if shown.density == "exact" else "kernel estimate"
    for axis, values, cloud, colour, label, title in (
        (left, shown.nll, points, ORANGE, f"NLL in nats ({of})", "points after optimisation"),
        (middle, loss_map, shown.data, "#222222", LOSS_LABEL, "target samples"),
    ):
        _map(figure, axis, shown.axes, values, label)
        axis.plot(*cloud.T.numpy(), ".", color=colour, markersize=1.6, alpha=0.7)
        axis.set_title(title, fontsize=10)
    steps = [row["step"] for row in curve]
    twin = right.twinx()
    for axis, name, label, colour, line, marker in (
        (right, "alignment_loss", LOSS_LABEL, BLUE, "-", "o"),
        (twin, "nll", "mean NLL in nats", ORANGE, "--", "s"),
    ):
        axis.plot(
            steps, [row[name] for row in curve], line, color=colour, marker=marker, markersize=3
        )
        axis.set_ylabel(label, color=colour)
        axis.tick_params(axis="y", colors=colour)
        axis.spines["top"].set_visible(False)
    right.set_xscale("symlog", linthresh=1)
    right.set_xlabel("step (log scale)")
    right.set_title("both over the optimisation", fontsize=10)
    return figure


def path_figure(shown: TargetMap, steps: Sequence[int], history: Tensor) -> Figure:
    """The points at a few looks, from left to right, over contours of the NLL.

    Args:
        shown: The target in its window.
        steps: When was looked.
        history: The points at each look, [looks, n, 2].
    """
    chosen = np.linspace(0, len(steps) - 1, SHOWN_LOOKS).round().astype(int)
    figure = Figure(figsize=(11.5, 2.2), layout="constrained")
    for axis, look in zip(figure.subplots(1, SHOWN_LOOKS), chosen, strict=True):
        _cloud(axis, shown, history[look])
        axis.set_title(f"step {steps[look]}", fontsize=10)
    return figure


def gallery_figure(
    shown: TargetMap, panels: Sequence[tuple[str, Tensor, Mapping[str, Any]]]
) -> Figure:
    """A panel for each objective: where the points ended, with their spread and coverage.

    Args:
        shown: The target in its window.
        panels: Of each objective its name, the points [n, 2] and their metrics.
    """
    columns = 5
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(11.5, 2.75 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (name, points, metrics) in zip(grid, panels, strict=False):
        _cloud(axis, shown, points)
        axis.set_title(name, fontsize=11)
        axis.set_xlabel(
            f"spread {metrics['within_mode_std_ratio']:.2f}, coverage {metrics['coverage']:.2f}",
            fontsize=9,
        )
    for axis in grid[len(panels) :]:
        axis.remove()
    return figure


def theory_figure(
    panels: Mapping[tuple[str, str], tuple[Tensor, Mapping[str, Tensor]]],
    losses: Sequence[str],
    metrics: Mapping[str, Any],
) -> Figure:
    """Each loss against the exact NLL, a row for each velocity; Spearman's coefficient of each region.

    Args:
        panels: (region, velocity) to the exact NLL and the losses, all [n], nats.
        losses: Columns.
        metrics: Holds `spearman_<loss>_<region>_<velocity>`.
    """
    kinds = list(dict.fromkeys(kind for _, kind in panels))
    figure = Figure(figsize=(11.5, 3.4 * len(kinds)), layout="constrained")
    grid = figure.subplots(len(kinds), len(losses), squeeze=False)
    for row, kind in zip(grid, kinds, strict=True):
        for axis, loss in zip(row, losses, strict=True):
            for region, colour in REGION_COLOURS.items():
                exact, values = panels[region, kind]
                coefficient = metrics.get(f"spearman_{loss}_{region}_{kind}")
                known = "" if coefficient is None else f": {coefficient:.3f}"
                axis.plot(
                    *(exact, values[loss], "."),
                    color=colour,
                    markersize=3,
                    alpha=0.6,
                    label=f"{NAMES[region]}{known}",
                )
            axis.set_xlabel("exact NLL in nats")
            axis.set_ylabel(f"{NAMES[loss]} (nats)")
            axis.set_title(NAMES[kind], fontsize=10)
            _wide_scale(axis)
            axis.legend(title="Spearman", fontsize=8, title_fontsize=8, markerscale=3)
    return figure


def _wide_scale(axis: Axes) -> None:
    """Logarithmic on both axes beyond 1, with readable ticks and no room that nothing needs."""
    ticks = [-1, 0, 1, 3, 10, 30, 100, 300]
    for side in (axis.xaxis, axis.yaxis):
        low, high = side.get_data_interval()
        axis.set(**{f"{side.axis_name}scale": "symlog"})
        side.set_ticks([tick for tick in ticks if low <= tick <= high], minor=False)
        side.set_major_formatter("{x:g}")
        side.set_ticks([], minor=True)
    axis.autoscale()
    axis.margins(0.05)


def _map(figure: Figure, axis: Axes, axes: Axes2D, values: Tensor, label: str) -> None:
    """A map whose colours stop at the 75% quantile, where the far field would drown the rest."""
    shown = values.numpy()
    finite = shown[np.isfinite(shown)]
    picture = axis.imshow(
        np.clip(shown, None, finite.max()),
        origin="lower",
        extent=_extent(axes),
        cmap="viridis_r",
        vmin=float(finite.min()),
        vmax=float(np.quantile(finite, 0.75)),
        interpolation="bilinear",
    )
    figure.colorbar(picture, ax=axis, label=label, extend="max")
    _frame(axis, axes)


def _cloud(axis: Axes, shown: TargetMap, points: Tensor) -> None:
    """Points over contours of the NLL, two nats apart from the least."""
    least = float(shown.nll.min())
    across, up = (coordinates.numpy() for coordinates in shown.axes)
    values: NDArray[Any] = shown.nll.numpy()
    levels = np.linspace(least, least + 6, 4)
    axis.contour(across, up, values, levels=levels, colors="#aaaaaa", linewidths=0.6)
    axis.plot(*points.T.numpy(), ".", color=ORANGE, markersize=1.5, alpha=0.7)
    _frame(axis, shown.axes)


def _frame(axis: Axes, axes: Axes2D) -> None:
    left, right, low, high = _extent(axes)
    axis.set_xlim(left, right)
    axis.set_ylim(low, high)
    axis.set_aspect("equal")
    axis.set_xticks([])
    axis.set_yticks([])


def _extent(axes: Axes2D) -> tuple[float, float, float, float]:
    return (float(axes[0][0]), float(axes[0][-1]), float(axes[1][0]), float(axes[1][-1]))
