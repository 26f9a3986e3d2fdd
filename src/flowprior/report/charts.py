"""Charts as inline SVG, drawn by matplotlib: text stays text, colours are the page's, equal data give equal bytes."""

import io
import re
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

TEXT, LINE, BACK, FIRST, SECOND = "#1b1f24", "#d5dae0", "#fefefe", "#0072b2", "#c2500a"
COLOURS = {"text": TEXT, "line": LINE, "back": BACK, "first": FIRST, "second": SECOND}
"""What a chart is drawn in; the page's CSS variables of these names (one set for light, one for dark) replace them."""
FILLED: dict[str, Any] = {"color": FIRST, "ms": 7}
HOLLOW: dict[str, Any] = {"mfc": BACK, "mec": SECOND, "mew": 1.8, "ms": 7}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "axes.titleweight": "bold",
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), 11),
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), TEXT
    ),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), LINE),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 0),
    **{f"axes.spines.{side}": False for side in ("top", "right", "left")},
}
ROW = 24
"""Height of a row of a dot plot in pixels."""
MARKS = 4
"""About as many labelled marks on an axis."""
PLACES = (
    *((dx, dy, "left", "center") for dx, dy in ((8, 0), (7, 9), (7, -9))),
    *((dx, dy, "right", "center") for dx, dy in ((-8, 0), (-7, 9), (-7, -9))),
    *((0, dy, "center", "center") for dy in (13, -13)),
)
"""Where the name of a dot may stand, the best place first: shift in pixels, alignment."""


class Dots(NamedTuple):
    """A row of a dot plot: a dot for a run, the mean as a line; those of `second` are hollow."""

    name: str
    first: Sequence[float]
    second: Sequence[float] = ()


class Point(NamedTuple):
    """A named point of a scatter plot: it stands at the mean of its runs (x, y), which are small dots."""

    name: str
    runs: Sequence[tuple[float, float]]


class Curve(NamedTuple):
    """A run's values over the steps, on a left and on a right axis."""

    steps: Sequence[float]
    left: Sequence[float]
    right: Sequence[float]


def dot_plot(
    rows: Sequence[Dots], label: str, legend: tuple[str, str] | None = None, title: str = ""
) -> Markup:
    """Rows of dots along one axis, from top to bottom; rows without dots keep their place. Empty without any.

    Args:
        rows: What is compared.
        label: Of the axis.
        legend: What filled and hollow dots are.
        title: Said by screen readers before the label, not drawn.
    """
    if not any(row.first or row.second for row in rows):
        return Markup()
    with mpl.rc_context(STYLE):
        figure, axis = _figure(400, ROW * len(rows) + (66 if legend else 46))
        shift = 0.17 if legend else 0.0
        for at, row in enumerate(rows):
            for runs, y, style in (
                (row.first, at - shift, FILLED),
                (row.second, at + shift, HOLLOW),
            ):
                axis.plot(runs, [y] * len(runs), "o", clip_on=False, **style)
                if len(runs) > 1:
                    ends = [y - 0.36 + shift / 2, y + 0.36 - shift / 2]
                    axis.plot([np.mean(runs)] * 2, ends, color=TEXT, linewidth=2)
        axis.set_yticks(range(len(rows)), [row.name for row in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.xaxis.set_major_locator(MaxNLocator(MARKS))
        axis.grid(axis="x")
        axis.set_xlabel(
            label, loc="right"
        )  # centred, it would leave the figure where names are long
        for name, style in zip(legend or (), (FILLED, HOLLOW), strict=False):
            axis.plot([], [], "o", label=name, **style)
        if legend:
            figure.legend(
                loc="outside upper center", ncols=2, frameon=False, borderpad=0, handlelength=1
            )
        return _svg(figure, f"{title}: {label}" if title else label)


def scatter(points: Sequence[Point], x_label: str, y_label: str) -> Markup:
    """Runs as small dots around the mean of each point, named where there is room; empty without any.

    The y axis is logarithmic where all values allow it. A name that finds no room is shown to a pointer on its dot.
    """
    points = [point for point in points if point.runs]
    if not points:
        return Markup()
    with mpl.rc_context(STYLE):
        figure, axis = _figure(430, 400)
        means = [np.mean(point.runs, axis=0) for point in points]
        for point in points:
            axis.plot(*np.transpose(point.runs), "o", color=FIRST, alpha=0.4, markersize=4, mew=0)
        for point, mean in zip(points, means, strict=True):
            axis.plot(*mean, "o", color=FIRST, markersize=8, gid=f"tip {point.name}")
        if min(y for point in points for _, y in point.runs) > 0:
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_locator(NullLocator())
            y_label += " (log scale)"
        axis.xaxis.set_major_locator(MaxNLocator(MARKS + 1))
        axis.grid()
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
        figure.draw_without_rendering()  # whether names overlap is asked in pixels: the layout comes first
        figure.set_layout_engine("none")
        _name(axis, [point.name for point in points], means)
        return _svg(figure, f"{y_label} against {x_label}")


def two_axes(curves: Sequence[Curve], left: str, right: str, title: str) -> Markup:
    """Runs' curves on a left and a right axis, the first run in full, the others faint; empty without any."""
    curves = [curve for curve in curves if curve.steps]
    if not curves:
        return Markup()
    with mpl.rc_context(STYLE):
        figure, axis = _figure(300, 190)
        twin = axis.twinx()
        for at, curve in reversed(list(enumerate(curves))):
            style: dict[str, Any] = (
                {"linewidth": 2.0} if at == 0 else {"linewidth": 1.2, "alpha": 0.4}
            )
            axis.plot(curve.steps, curve.left, color=FIRST, **style)
            twin.plot(curve.steps, curve.right, "--", color=SECOND, **style)
        for one, colour, name in ((axis, FIRST, left), (twin, SECOND, right)):
            one.tick_params(axis="y", labelcolor=colour)
            one.yaxis.set_major_locator(MaxNLocator(MARKS))
            one.set_ylabel(name, color=colour)
        axis.xaxis.set_major_locator(MaxNLocator(MARKS))
        axis.set_title(title)
        return _svg(figure, f"{title}: {left} and {right} over training")


def _figure(width: int, height: int) -> tuple[Figure, Axes]:
    """A figure of so many pixels with one pair of axes; an SVG of matplotlib has 72 of them to an inch."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
    return figure, figure.subplots()


def _name(axis: Axes, names: Sequence[str], means: Sequence[np.ndarray]) -> None:
    """Name dots where the name neither covers another nor a dot, nor leaves the chart."""
    pixels = axis.transData.transform(means)
    taken = [mpl.transforms.Bbox.from_extents(*(at - 5), *(at + 5)) for at in pixels]
    for name, mean in zip(names, means, strict=True):
        for dx, dy, across, along in PLACES:
            text = axis.annotate(
                name, tuple(mean), (dx, dy), textcoords="offset pixels", ha=across, va=along
            )
            box = text.get_window_extent().padded(3, 1)
            inside = box.x0 > axis.bbox.x0 and box.x1 < axis.figure.bbox.x1
            if inside and not box.count_overlaps(taken):
                taken.append(box)
                break
            text.remove()


def _svg(figure: Figure, label: str) -> Markup:
    """The figure as an element of the page, which names it to screen readers; no two charts share an id."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": label}):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = re.sub(r'<g id="tip (.*?)">', r"<g><title>\1</title>", file.getvalue())
    text = re.sub(r' id="(?![mp][0-9a-f]+")[^"]*"', "", text)  # all but what `svg.hashsalt` made
    text = re.sub(r"<style.*?</style>", "", text).replace("'DejaVu Sans'", "system-ui, sans-serif")
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    width, height = figure.get_size_inches() * 72
    return Markup(
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}" '
        f'style="max-width: {1.3 * width:.0f}px">{text[text.index(">", text.index("<svg")) + 1 :]}'
    )
