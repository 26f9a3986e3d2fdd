"""The report's tables as Markdown."""

import math
from collections.abc import Sequence

from flowprior.experiments.claims import Finding, Summary
from flowprior.report.charts import minus
from flowprior.report.contents import Grid, Report


def render(report: Report) -> str:
    """The whole file."""
    parts = [
        "# What the experiments gave",
        f"Preset `{report.listing.preset}`, mean ± standard deviation over {len(report.listing.seeds)} seeds, best in "
        f"bold. {'; '.join(report.facts)}. Made by `make report`, which also writes `metrics/report.html`, with curves "
        "and images.",
    ]
    if report.missing:
        parts.append(f"Not run yet: {', '.join(report.missing)}.")
    if report.older:
        parts.append("† made by other code than the committed.")
    for one in report.grids:
        parts += [f"## {one.title}", table(one)]
        if one.paper_source:
            parts += [
                f"The paper's figures, of other images and networks ({one.paper_source}):",
                paper(one),
            ]
    parts += ["## What holds here", claims(report.findings)]
    return "\n\n".join(parts) + "\n"


def table(one: Grid) -> str:
    """Our figures of a table."""
    rows = [
        [name, *(f"**{cell.text}**" if cell.best else cell.text for cell in cells)]
        for name, cells in one.rows
    ]
    return _table(["", *one.head], rows)


def paper(one: Grid) -> str:
    """The paper's figures of a table."""
    return _table(["", *one.paper_head], [[row, *cells] for row, cells in one.paper.items()])


def claims(findings: Sequence[Finding]) -> str:
    """What holds."""
    rows = [
        [f"{one.claim.says} ({one.claim.by})", f"**{one.verdict}**", figures(one), p_value(one)]
        for one in findings
    ]
    return _table(["claim", "here", "figures", "p, adjusted"], rows)


def figures(one: Finding) -> str:
    """The numbers behind a verdict, in words."""
    if one.verdict == "no results":
        return ""
    name = one.claim.metric.split(".")[1]
    if one.claim.trend is not None:
        return minus(f"`{name}`: rank correlation {one.difference:.2f} over {one.first.n} runs")
    second = f"{one.claim.than:g}" if one.second is None else _mean(one.second)
    return minus(
        f"`{name}`: {_mean(one.first)} against {second}; difference {one.difference:.3g} "
        f"[{one.low:.3g}, {one.high:.3g}]"
    )


def p_value(one: Finding) -> str:
    """Of a finding, readable."""
    if math.isnan(one.adjusted):
        return ""
    return "< 0.001" if one.adjusted < 0.001 else f"{one.adjusted:.3f}"


def _mean(one: Summary) -> str:
    return f"{one.mean:.4g} ± {one.std:.2g} (n = {one.n})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
