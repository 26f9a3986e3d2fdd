"""The report as one HTML page and as Markdown, from the templates beside this module; what they call is here."""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from flowprior.experiments.claims import Finding, Summary
from flowprior.experiments.results import Result
from flowprior.report import charts
from flowprior.report.contents import Cell, Report, Rows, counted, minus, numbers, words

JUDGED = {
    "fd": ("sample_eval.fd_digits", "sample_eval.fid"),
    "fd_guided": ("sample_eval.fd_digits_guided", "sample_eval.fid_guided"),
    "psnr": ("encode_latents.psnr_db",),
}
"""What is plotted: the metrics it may be, of which the first that a run has counts."""
TEMPLATES = Path(__file__).with_name("templates")
NEIGHBOURS = 5
"""Of the nearest-neighbour distance whose curves are drawn."""


def render_html(report: Report) -> str:
    """The whole page: styles, charts and images inside, no script, nothing from the network."""
    template = ENVIRONMENT.get_template("report.html")
    return template.render(report=report, distinct=distinct(report)).lstrip()


def render_markdown(report: Report) -> str:
    """Its tables and claims as Markdown."""
    return ENVIRONMENT.get_template("report.md").render(report=report)


def distinct(report: Report) -> list[tuple[str, Sequence[Result]]]:
    """Rows that have results, each once under its first name where several tables share it."""
    rows: dict[str, tuple[str, Sequence[Result]]] = {}
    for table in report.runs.values():
        for name, runs in table.items():
            if runs:
                rows.setdefault(runs[0].name, (name, runs))
    return list(rows.values())


def judged(runs: Sequence[Result], what: str) -> list[float]:
    """The values of one of `JUDGED`; runs whose images nothing judged are passed over."""
    return [value for run in runs for value in [_judged(run, what)] if value is not None]


def _judged(run: Result, what: str) -> float | None:
    values = (numbers([run], name) for name in JUDGED[what])
    return next((value[0] for value in values if value), None)


def dot_plot(title: str, rows: Rows, label: str, *kinds: str) -> Markup:
    """A dot plot of one or two of `JUDGED` of a table's runs: filled dots without guidance, hollow ones with."""
    dots = [charts.Dots(row, *(judged(runs, kind) for kind in kinds)) for row, runs in rows.items()]
    return charts.dot_plot(
        dots, label, ("no guidance", "guided") if len(kinds) > 1 else None, title
    )


def trade_off(rows: Iterable[tuple[str, Sequence[Result]]], fd: str, kind: str) -> Markup:
    """Reconstruction against generation, one of the two in `JUDGED`; a point for a row."""
    points = []
    for row, runs in rows:
        pairs = [(_judged(run, "psnr"), _judged(run, fd)) for run in runs]
        both = [(x, y) for x, y in pairs if x is not None and y is not None]
        points.append(charts.Point(row, both))
    return charts.scatter(points, "PSNR of reconstructions, dB", f"Fréchet distance of {kind}")


def curve_plot(row: str, runs: Sequence[Result]) -> Markup:
    """Alignment loss and nearest-neighbour distance over training (Fig. 4, arXiv:2506.05240)."""
    curves = [run.curves.get("alignment", {}) for run in runs]
    drawn = [
        charts.Curve(curve["step"], curve["alignment_loss"], curve[f"mean_log_r{NEIGHBOURS}"])
        for curve in curves
        if curve.get("step")
    ]
    return charts.two_axes(drawn, "alignment loss", f"mean log r{NEIGHBOURS}", row)


def correlation(runs: Sequence[Result]) -> str:
    """How the two curves go together: coefficients' means over runs, and the widest interval of a run."""
    said = []
    for name in ("pearson", "spearman"):
        key = f"train_ae.{name}_r{NEIGHBOURS}"
        values, lows, highs = (numbers(runs, f"{key}{end}") for end in ("", "_low", "_high"))
        if len(values) == len(lows) == len(highs) == len(runs):
            said.append(f"{name.title()} {mean(values):.2f} [{min(lows):.2f}, {max(highs):.2f}]")
    return minus(", ".join(said))


def figures(one: Finding) -> str:
    """The numbers behind a verdict, in words."""
    if one.claim.trend is not None:
        return minus(f"rank correlation {one.difference:.2f} over {one.first.n} runs")
    second = f"{one.claim.than:g}" if one.second is None else _summary(one.second)
    interval = f"[{one.low:.3g}, {one.high:.3g}]"
    return minus(
        f"{_summary(one.first)} against {second}; difference {one.difference:.3g} {interval}"
    )


def p_value(one: Finding) -> str:
    """The adjusted p-value, readable; empty without one."""
    if math.isnan(one.adjusted):
        return ""
    return "< 0.001" if one.adjusted < 0.001 else f"{one.adjusted:.3f}"


def _summary(one: Summary) -> str:
    return f"{one.mean:.4g} ± {one.std:.2g} (n = {one.n})"


def mean(values: Sequence[float]) -> float | None:
    """The mean of the values; None if there are none."""
    return sum(values) / len(values) if values else None


def fixed(value: float | None, digits: int) -> str:
    """A number with so many digits behind the point, or a dash."""
    return "–" if value is None else minus(f"{value:.{digits}f}")


def percent(share: float | None) -> str:
    """A share as a signed percentage, or a dash."""
    return "–" if share is None else minus(f"{100 * share:+.0f}%")


def image(png: bytes) -> str:
    """A PNG as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def bold(cell: Cell) -> str:
    """The text of a table's cell in Markdown, bold if it is the best of its column."""
    return f"**{cell.text}**" if cell.best else cell.text


def row(first: Sequence[str], cells: Iterable[str]) -> str:
    """A line of a table in Markdown."""
    escaped = [cell.replace("|", "\\|") for cell in (*first, *cells)]
    return f"| {' | '.join(escaped)} |"


def verdict_rows(found: Mapping[str, Mapping[str, Mapping[str, int]]]) -> list[tuple[str, Any]]:
    """How often the check was right: for each case how often over all kinds of targets, and in the worst.

    Args:
        found: Of `metrics/check_calibration.json`: by kind of targets, by "word: case", how often each word was said.
    """
    rows: dict[str, dict[str, Any]] = {}
    for cases in found.values():
        for key, said in cases.items():
            word, _, case = key.partition(": ")
            right, trials = said.get(word, 0), sum(said.values())
            row = rows.setdefault(
                case, {"word": word, "right": 0, "trials": 0, "least": right, "of": trials}
            )
            row["right"] += right
            row["trials"] += trials
            if right * row["of"] < row["least"] * trials:
                row["least"], row["of"] = right, trials
    return list(rows.items())


def _environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        extensions=["jinja2.ext.do"],
    )
    calls: tuple[Any, ...] = (dot_plot, trade_off, curve_plot)
    found.globals |= {call.__name__: call for call in calls}
    calls = (
        bold,
        correlation,
        counted,
        figures,
        fixed,
        image,
        judged,
        mean,
        numbers,
        p_value,
        percent,
        row,
        verdict_rows,
        words,
    )
    found.filters |= {call.__name__: call for call in calls}
    return found


ENVIRONMENT = _environment()
