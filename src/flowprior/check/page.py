"""A check as a page of HTML that needs nothing else: no script, no font, no network."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy import ndarray

from flowprior.check.yardstick import Measure

if TYPE_CHECKING:
    from flowprior.check.result import LatentCheck

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1b1f24; --soft: #57606a; --line: #d5dae0; --band: #dfe5ea;
  --targets: #8b96a1; --latents: #c2500a; --good: #0a7a52; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --back: #14171b; --text: #e8eaed; --soft: #a3abb5; --line: #39404a;
  --band: #323942; --targets: #8b96a1; --latents: #f0955a; --good: #4cc38a; --bad: #ff8d85; } }
body { margin: 0 auto; max-width: 64rem; padding: 1.5rem 1rem 3rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.good { color: var(--good); } .bad { color: var(--bad); } .soft { color: var(--soft); font-size: .875rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .5rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
tbody th, thead th:first-child { text-align: left; font-weight: 400; white-space: normal; }
.outside td:nth-child(2) { color: var(--bad); font-weight: 700; }
.pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .875rem; }
svg { display: block; width: 100%; height: auto; }
td svg { width: 9rem; } svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
.t { fill: var(--targets); } .l { fill: var(--latents); }
.tl { stroke: var(--targets); } .ll { stroke: var(--latents); }
.line { fill: none; stroke-width: 1.6; } .frame { stroke: var(--line); fill: none; } .band { fill: var(--band); }
""".strip()
SIDE, EDGE = 320, 26
"""Of a picture and its margin, in pixels."""
STRIP = (144, 14)


def page_of(check: "LatentCheck") -> str:
    """The page."""
    colour = "good" if check.good else "bad"
    findings = "".join(f"<li>{escape(finding)}</li>" for finding in check.findings)
    rows = "".join(_row(*row) for row in check.rows())
    table = ""
    if rows:
        table = (
            "<h2>Figures</h2><div class='scroll'><table><thead><tr><th></th><th>latents</th><th>fresh targets</th>"
            "<th>99% of fresh sets</th><th></th></tr></thead><tbody>"
            f"{rows}</tbody></table></div>"
            "<p class='soft'>Grey: where as many fresh targets lie. Dot: the latents. Red figures lie outside.</p>"
        )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Latents: {escape(check.verdict)}</title><style>{STYLE}</style></head><body>"
        f"<h1>The latents are <span class='{colour}'>{escape(check.verdict)}</span></h1>"
        f"<ul>{findings}</ul><p>What helps: {escape(check.advice)}.</p>"
        f"<p class='soft'>{escape(check.compared)}.</p>"
        f"<h2>Pictures</h2><div class='pictures'>{_plane(check)}{_spread(check)}</div>{table}</body></html>\n"
    )


def _row(name: str, one: Measure, outside: bool) -> str:
    low, high = one.interval
    return (
        f"<tr{' class=outside' if outside else ''}><th scope='row'>{escape(name)}</th><td>{one.value:.3f}</td>"
        f"<td>{one.fresh:.3f}</td><td>{low:.3f} to {high:.3f}</td><td>{_strip(one)}</td></tr>"
    )


def _strip(one: Measure) -> str:
    """The interval as a band, the value as a dot."""
    width, height = STRIP
    low, high = one.interval
    left, right = min(low, one.value), max(high, one.value)
    scale = (width - 12) / ((right - left) or 1.0)
    band, dot = 6 + (low - left) * scale, 6 + (one.value - left) * scale
    return (
        f"<svg viewBox='0 0 {width} {height}' aria-hidden='true'>"
        f"<rect class='band' x='{band:.1f}' y='3' width='{max(2.0, (high - low) * scale):.1f}' height='8' rx='2'/>"
        f"<circle class='l' cx='{dot:.1f}' cy='7' r='4'/></svg>"
    )


def _plane(check: "LatentCheck") -> str:
    """Both sets in the plane of the targets' first two principal components."""
    targets, latents = check.picture.targets, check.picture.latents
    both = np.concatenate([targets, latents])
    centre = (both.max(0) + both.min(0)) / 2
    reach = float(np.ptp(both, axis=0).max()) / 2 or 1.0
    dots = _dots("t", targets, centre, reach) + _dots("l", latents, centre, reach)
    caption = "Targets (grey) and latents, along the targets' first two principal components"
    return _figure(dots, caption, "", "")


def _dots(kind: str, points: ndarray, centre: ndarray, reach: float) -> str:
    places = EDGE + (0.5 + 0.5 * (points - centre) / reach) * (SIDE - 2 * EDGE)
    return "".join(
        f"<circle class='{kind}' cx='{x:.1f}' cy='{SIDE - y:.1f}' r='1.6' opacity='.6'/>"
        for x, y in zip(places[:, 0], places[:, -1], strict=True)
    )


def _spread(check: "LatentCheck") -> str:
    """Standard deviations along the targets' principal components."""
    picture = check.picture
    most = float(max(picture.target_stds.max(), picture.latent_stds.max())) or 1.0
    lines = _line("tl", picture.target_stds, most) + _line("ll", picture.latent_stds, most)
    caption = "Standard deviation along each principal component of the targets"
    return _figure(lines, caption, f"{most:.3g}", str(len(picture.target_stds)))


def _line(kind: str, values: Sequence[float] | ndarray, most: float) -> str:
    step = (SIDE - 2 * EDGE) / max(1, len(values) - 1)
    places = " ".join(
        f"{EDGE + i * step:.1f},{SIDE - EDGE - value / most * (SIDE - 2 * EDGE):.1f}"
        for i, value in enumerate(values)
    )
    return f"<polyline class='line {kind}' points='{places}'/>"


def _figure(inside: str, caption: str, top: str, right: str) -> str:
    far = SIDE - EDGE
    marks = ""
    if top:
        marks = (
            f"<text x='{EDGE + 4}' y='{EDGE - 8}'>{top}</text><text x='{EDGE + 4}' y='{far - 4}'>0</text>"
            f"<text x='{EDGE}' y='{far + 16}'>1</text><text x='{far}' y='{far + 16}' text-anchor='end'>{right}</text>"
        )
    return (
        f"<figure><svg viewBox='0 0 {SIDE} {SIDE}' role='img' aria-label='{escape(caption)}'>"
        f"<rect class='frame' x='{EDGE}' y='{EDGE}' width='{SIDE - 2 * EDGE}' height='{SIDE - 2 * EDGE}'/>"
        f"{inside}{marks}</svg><figcaption>{escape(caption)}</figcaption></figure>"
    )
