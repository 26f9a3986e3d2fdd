"""Charts as SVG text, for a page that needs no script and no network; colours are the page's CSS variables."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH = 380
LEFT = 96
ROW = 22
LETTER = 7.0
"""Width of one in pixels, about."""
COVERED = 20.0
"""Square pixels of a label that others may cover; beyond, it is left out, and the dot shows it to a pointer."""


class Dots(NamedTuple):
    """A row of a dot plot: runs as dots, their mean as a line; `second` with hollow dots."""

    name: str
    first: Sequence[float]
    second: Sequence[float] = ()


class Scale:
    """Values to pixels, along a line."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        self.ticks = ticks(low - pad, high + pad)
        self.low, self.high = min(low - pad, self.ticks[0]), max(high + pad, self.ticks[-1])
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self._start + share * (self._end - self._start)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers between two, a handful."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda one: abs(one - raw))
    first = math.ceil(low / step)
    return [round(k * step, 12) for k in range(first, math.floor(high / step) + 1)] or [low]


def number(value: float) -> str:
    """A tick's label."""
    return minus(f"{value:.6g}")


def minus(text: str) -> str:
    """A number with the sign that is as wide as a plus."""
    return text.replace("-", "−")


def dot_plot(rows: Sequence[Dots], label: str, legend: tuple[str, str] | None = None) -> str:
    """Rows of dots along one axis.

    Args:
        rows: From top to bottom; those without dots keep their place.
        label: Of the axis; also what a screen reader says.
        legend: What filled and hollow dots are.
    """
    values = [x for row in rows for x in (*row.first, *row.second)]
    if not values:
        return ""
    top = 24 if legend else 6
    bottom = top + ROW * len(rows)
    left = max(LEFT, 12 + LETTER * max(len(row.name) for row in rows))
    x = Scale(values, left, WIDTH - 12)
    parts = []
    for tick in x.ticks:
        at = f"{x(tick):.1f}"
        parts += [
            f'<line class="grid" x1="{at}" x2="{at}" y1="{top}" y2="{bottom}"/>',
            f'<text x="{at}" y="{bottom + 14}" text-anchor="middle">{number(tick)}</text>',
        ]
    for at, row in enumerate(rows):
        y = top + ROW * (at + 0.5)
        parts.append(
            f'<text x="{left - 8:g}" y="{y + 4}" text-anchor="end">{escape(row.name)}</text>'
        )
        for kind, runs in (("first", row.first), ("second", row.second)):
            parts += [f'<circle class="{kind}" cx="{x(v):.1f}" cy="{y}" r="4"/>' for v in runs]
            if len(runs) > 1:
                mean = x(sum(runs) / len(runs))
                parts.append(
                    f'<line class="mean" x1="{mean:.1f}" x2="{mean:.1f}" y1="{y - 8}" y2="{y + 8}"/>'
                )
    if legend:
        for kind, name, at in zip(("first", "second"), legend, (left, left + 120), strict=True):
            parts += [
                f'<circle class="{kind}" cx="{at + 4:g}" cy="10" r="4"/>',
                f'<text x="{at + 13:g}" y="14">{escape(name)}</text>',
            ]
    parts.append(  # up to the axis' end: below its middle, long names would push it over the edge
        f'<text x="{WIDTH - 12}" y="{bottom + 30}" text-anchor="end">{escape(label)}</text>'
    )
    return _svg(parts, WIDTH, bottom + 36, label)


class Point(NamedTuple):
    """A named point of a scatter plot; where it stands is the mean of its runs."""

    name: str
    runs: Sequence[tuple[float, float]]


def scatter(points: Sequence[Point], x_label: str, y_label: str) -> str:
    """Runs as small dots around the mean of each, which is named where there is room."""
    runs = [run for point in points for run in point.runs]
    if not runs:
        return ""
    width, height, left, bottom = 560, 480, 52, 440
    x = Scale([run[0] for run in runs], left, width - 90)
    y = Scale([run[1] for run in runs], bottom, 10)
    parts = []
    for tick in x.ticks:
        parts += [
            f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="10" y2="{bottom}"/>',
            f'<text x="{x(tick):.1f}" y="{bottom + 15}" text-anchor="middle">{number(tick)}</text>',
        ]
    for tick in y.ticks:
        parts += [
            f'<line class="grid" x1="{left}" x2="{width - 90}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>',
            f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>',
        ]
    means = [(x(_mean(p.runs, 0)), y(_mean(p.runs, 1))) for p in points if p.runs]
    taken = [(at - 5, down - 5, at + 5, down + 5) for at, down in means]
    for point, (at, down) in zip((p for p in points if p.runs), means, strict=True):
        parts += [
            f'<circle class="faint" cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.5"/>'
            for a, b in point.runs
        ]
        name = escape(point.name)
        parts.append(
            f'<circle class="first" cx="{at:.1f}" cy="{down:.1f}" r="4.5"><title>{name}</title></circle>'
        )
        box, covered = _free_place(at, down, LETTER * len(point.name), taken)
        if covered <= COVERED:
            taken.append(box)
            parts.append(f'<text x="{box[0]:.1f}" y="{box[3] - 2:.1f}">{name}</text>')
    parts += [
        f'<text x="{(left + width - 90) / 2}" y="{height - 8}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text transform="translate(12 {bottom / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>',
    ]
    return _svg(parts, width, height, f"{y_label} against {x_label}")


def _mean(runs: Sequence[tuple[float, float]], axis: int) -> float:
    return sum(run[axis] for run in runs) / len(runs)


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def _free_place(at: float, down: float, width: float, taken: Sequence[Box]) -> tuple[Box, float]:
    """Where a label of a point fits best: right of it, left, above or below; and how much it covers there."""
    starts = [(at + 8, down - 6), (at - 8 - width, down - 6), (at - width / 2, down - 20)]
    starts += [(at - width / 2, down + 8), (at + 8, down + 5), (at + 8, down - 18)]
    boxes = [(left, top, left + width, top + 12) for left, top in starts]
    covered = [sum(_overlap(box, other) for other in taken) for box in boxes]
    best = covered.index(min(covered))
    return boxes[best], covered[best]


def _overlap(a: Box, b: Box) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, wide) * max(0.0, high)


class Curve(NamedTuple):
    """Columns of a curve of one run."""

    steps: Sequence[float]
    left: Sequence[float]
    right: Sequence[float]


def two_axes(curves: Sequence[Curve], left_label: str, right_label: str, title: str) -> str:
    """Runs' curves on a left and a right axis, each run thin; the first in full."""
    curves = [curve for curve in curves if curve.steps]
    if not curves:
        return ""
    width, height, top, bottom, start, end = 300, 190, 22, 154, 40, 260
    x = Scale([s for curve in curves for s in curve.steps], start, end)
    sides = [
        ("first", Scale([v for c in curves for v in c.left], bottom, top), start - 5, "end"),
        ("second", Scale([v for c in curves for v in c.right], bottom, top), end + 5, "start"),
    ]
    parts = [
        f'<text class="title" x="{width / 2}" y="14" text-anchor="middle">{escape(title)}</text>'
    ]
    for kind, scale, at, anchor in sides:
        parts += [
            f'<text class="{kind}-text" x="{at}" y="{scale(t) + 4:.1f}" text-anchor="{anchor}">{number(t)}</text>'
            for t in scale.ticks
        ]
        for curve in reversed(curves):
            values = curve.left if kind == "first" else curve.right
            line = " ".join(
                f"{x(s):.1f},{scale(v):.1f}" for s, v in zip(curve.steps, values, strict=True)
            )
            faint = "" if curve is curves[0] else " faint-line"
            parts.append(f'<polyline class="{kind}-line{faint}" points="{line}"/>')
    parts += [
        f'<text x="{x(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{number(tick)}</text>'
        for tick in x.ticks
    ]
    parts.append(f'<line class="grid" x1="{start}" x2="{end}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(
        f'<text x="{(start + end) / 2}" y="{bottom + 30}" text-anchor="middle">'
        f'<tspan class="first-text">{escape(left_label)}</tspan> · '
        f'<tspan class="second-text">{escape(right_label)}</tspan></text>'
    )
    return _svg(parts, width, height, f"{title}: {left_label} and {right_label} over training")


def _svg(parts: Sequence[str], width: float, height: float, label: str) -> str:
    body = "\n".join(parts)
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}" '
        f'style="max-width:{1.35 * width:.0f}px">\n{body}\n</svg>'
    )
