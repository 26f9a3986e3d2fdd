"""The report as one HTML page: styles, charts and images inside, no script, nothing from the network."""

import base64
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from flowprior.experiments.claims import Finding
from flowprior.experiments.results import Result
from flowprior.report import charts
from flowprior.report.contents import Grid, Report
from flowprior.report.markdown import figures, p_value

CURVED = "priors"
"""The table whose rows' curves are shown."""
K = 5

STYLE = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")

VERDICTS = {
    "holds": ("holds", "✓ holds"),
    "does not hold": ("fails", "✗ does not hold"),
    "undecided": ("", "? undecided"),
    "no results": ("", "– no results"),
}


def render(report: Report) -> str:
    """The whole page."""
    sections = [
        ("claims", "What holds", _claims(report.findings)),
        *((one.name, one.title, _table(report, one)) for one in report.grids),
        ("trade-off", "Reconstruction against generation", _trade_off(report)),
        ("curves", "Alignment over training", _curves(report)),
        ("collapse", "Latents that sit on modes", _collapse(report)),
        ("images", "Samples and reconstructions", _images(report)),
        ("costs", "What it costs", _costs(report)),
        ("limits", "What this can show", _limits(report)),
    ]
    links = "".join(
        f'<li><a href="#{name}">{escape(name.capitalize())}</a></li>' for name, _, _ in sections
    )
    body = "\n".join(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(title)}</h2>\n{text}</section>'
        for name, title, text in sections
        if text
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>flowprior: what the experiments gave</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#claims">Skip to the results</a>
<header>
<h1>What a flow prior does to latents, and to what is generated from them</h1>
{_state(report)}
</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
{body}
</main>
<footer>Made by <code>make report</code> from <code>metrics/experiments/</code>; the list of experiments is
<code>tables.yaml</code>. The method: Aligning Latent Spaces with Flow Priors, arXiv:2506.05240.</footer>
</body>
</html>
"""


def _state(report: Report) -> str:
    everything = {
        run.key for rows in report.runs.values() for runs in rows.values() for run in runs
    }
    seeds = len(report.listing.seeds)
    lines = [
        f"<p>{len(everything)} experiments, preset <code>{escape(report.listing.preset)}</code>, {seeds} seeds "
        f"each: mean ± standard deviation over them. {escape('; '.join(report.facts))}.</p>",
        f'<p class="soft">{escape("; ".join(report.machines))}.</p>' if report.machines else "",
    ]
    if report.missing:
        lines.append(
            f"<details><summary><strong>{len(report.missing)} not run yet</strong></summary>"
            f"<p>{escape(', '.join(report.missing))}</p></details>"
        )
    if report.older:
        lines.append(
            f"<p><strong>† Made by other code than the committed:</strong> {escape(', '.join(report.older))}. "
            "<code>make tables</code> makes them anew.</p>"
        )
    return "\n".join(lines)


def _claims(findings: Sequence[Finding]) -> str:
    lines = []
    for one in findings:
        kind, word = VERDICTS[one.verdict]
        p = (
            f"; p {p_value(one)}"
            if p_value(one).startswith("<")
            else f"; p = {p_value(one)}"
            if p_value(one)
            else ""
        )
        numbers = escape(figures(one).replace("`", "")) + p
        lines.append(
            f'<li class="{kind}"><b>{word}</b><span class="what">{escape(one.claim.says)} '
            f'<span class="soft">({escape(one.claim.by)})</span></span><span class="soft">{numbers}</span></li>'
        )
    return (
        "<p>Welch's t-test between runs (Student's against a number, Spearman's rank correlation over a table), "
        "two-sided, adjusted for the number of claims by Holm's method; decided at 5%. In brackets the 95% interval "
        "of the difference. <em>Undecided</em> means that these runs cannot tell.</p>"
        f'<ul class="claims">{"".join(lines)}</ul>'
    )


def _table(report: Report, one: Grid) -> str:
    source = f"the paper: {escape(one.paper_source)}"
    extra = f'<th class="group paper start" colspan="{len(one.paper_head)}">{source}</th>'
    ours = f'<th class="group" colspan="{len(one.head)}">ours, {escape(report.listing.preset)}</th>'
    top = f"<tr><th></th>{ours}{extra}</tr>"
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in one.head)
    heads += "".join(
        f'<th scope="col" class="paper{" start" * (not at)}">{escape(name)}</th>'
        for at, name in enumerate(one.paper_head)
    )
    lines = []
    for name, cells in one.rows:
        row = name.split(" ")[0]
        tds = "".join(f"<td{' class=best' * cell.best}>{escape(cell.text)}</td>" for cell in cells)
        published = one.paper.get(row, [""] * len(one.paper_head))
        tds += "".join(
            f'<td class="paper{" start" * (not at)}">{escape(text)}</td>'
            for at, text in enumerate(published)
        )
        kind = ' class="real"' if name.startswith("real ") else ""
        lines.append(f'<tr{kind}><th scope="row">{escape(name)}</th>{tds}</tr>')
    rows = report.runs[one.name]
    plots = [
        charts.dot_plot(
            [
                charts.Dots(row, _of(runs, "fd"), _of(runs, "fd_guided"))
                for row, runs in rows.items()
            ],
            "Fréchet distance of samples, smaller is better",
            ("no guidance", "guided"),
        ),
        charts.dot_plot(
            [charts.Dots(row, _of(runs, "psnr")) for row, runs in rows.items()],
            "PSNR of reconstructions in dB, larger is better",
        ),
    ]
    return (
        _scrolled(
            one.title,
            (top if one.paper_head else "") + f'<tr><th scope="col">row</th>{heads}</tr>',
            lines,
        )
        + f'<div class="pair">{"".join(f"<figure>{plot}</figure>" for plot in plots)}</div>'
    )


METRICS = {
    "fd": ("sample_eval.fd_digits", "sample_eval.fid"),
    "fd_guided": ("sample_eval.fd_digits_guided", "sample_eval.fid_guided"),
    "psnr": ("encode_latents.psnr_db",),
}


def _value(run: Result, what: str) -> float | None:
    """One of `METRICS`; None where nothing judged the images."""
    found = (run.metrics.get(name) for name in METRICS[what])
    return next((float(value) for value in found if value is not None), None)


def _of(runs: Sequence[Result], what: str) -> list[float]:
    return [value for run in runs if (value := _value(run, what)) is not None]


def _distinct(report: Report) -> Iterator[tuple[str, Sequence[Result]]]:
    """Every row once, under its first name."""
    seen: set[str] = set()
    for rows in report.runs.values():
        for row, runs in rows.items():
            if runs and runs[0].key not in seen:
                seen.add(runs[0].key)
                yield row, runs


def _trade_off(report: Report) -> str:
    points = []
    for row, runs in _distinct(report):
        pairs = [(_value(run, "psnr"), _value(run, "fd")) for run in runs]
        points.append(
            charts.Point(row, [(x, y) for x, y in pairs if x is not None and y is not None])
        )
    plot = charts.scatter(points, "PSNR of reconstructions, dB", "Fréchet distance of samples")
    return plot and (
        "<p>Every row of every table: large dots are means, small ones runs; where names would cover one another, a "
        "dot shows its own under the pointer. Best is at the lower right.</p>"
        f"<figure>{plot}</figure>"
    )


def _curves(report: Report) -> str:
    cards = []
    for row, runs in report.runs.get(CURVED, {}).items():
        curves = [run.curves.get("alignment", {}) for run in runs]
        drawn = [
            charts.Curve(c["step"], c["alignment_loss"], c[f"mean_log_r{K}"])
            for c in curves
            if c.get("step")
        ]
        plot = charts.two_axes(drawn, "alignment loss", f"mean log r{K}", row)
        if plot:
            cards.append(f"<figure>{plot}<figcaption>{_correlation(runs)}</figcaption></figure>")
    return "".join(
        [
            "<p>As the paper's Fig. 4: alignment loss of held-out latents, and their mean log distance to the "
            f"{K} nearest targets, over training. Seed {report.listing.seeds[0]} in full, the others faint. "
            "Coefficients are means over seeds, in brackets the widest of the seeds' 95% intervals.</p>",
            f'<div class="cards">{"".join(cards)}</div>',
        ]
        if cards
        else []
    )


def _correlation(runs: Sequence[Result]) -> str:
    said = []
    for name in ("pearson", "spearman"):
        key = f"train_ae.{name}_r{K}"
        ends = [[run.metrics.get(f"{key}{end}") for run in runs] for end in ("", "_low", "_high")]
        if any(value is None for values in ends for value in values):
            continue
        mean = sum(ends[0]) / len(runs)
        said.append(f"{name.title()} {mean:.2f} [{min(ends[1]):.2f}, {max(ends[2]):.2f}]")
    return escape(charts.minus(", ".join(said)))


def _collapse(report: Report) -> str:
    lines = []
    for row, runs in _distinct(report):
        flags = [int(run.metrics["encode_latents.collapsed"]) for run in runs]
        cells = [f"{sum(flags)} of {len(flags)}"]
        for name, digits in (
            ("std_ratio_median", 2),
            ("latent_recall", 2),
            ("coverage", 2),
            ("nll_gap_nats", 2),
        ):
            values = [float(run.metrics[f"encode_latents.{name}"]) for run in runs]
            cells.append(charts.minus(f"{sum(values) / len(values):.{digits}f}"))
        lines.append(
            f'<tr><th scope="row">{escape(row)}</th>{"".join(f"<td>{c}</td>" for c in cells)}</tr>'
        )
    if not lines:
        return ""
    heads = ("row", "flagged", "std ratio", "latent recall", "coverage", "NLL gap, nats")
    return (
        "<p>A run is flagged where its held-out latents look collapsed, or unlike the targets otherwise: too narrow "
        "or wide, of low recall or coverage, or far denser than targets are. Means over seeds.</p>"
        + _plain_table("Collapse", heads, lines)
    )


def _plain_table(label: str, heads: Sequence[str], lines: Sequence[str]) -> str:
    cells = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    return _scrolled(label, f"<tr>{cells}</tr>", lines)


def _scrolled(label: str, heads: str, lines: Sequence[str]) -> str:
    """A table that scrolls sideways where it is too wide, also by keyboard."""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}"><table>'
        f"<thead>{heads}</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _images(report: Report) -> str:
    parts = []
    captions = {
        "samples": "Samples of the first seed: four of each class without guidance, then four with; all rows from "
        "the same noise.",
        "reconstructions": "Held-out images with the first seed, each with its reconstruction behind it; the same "
        "images in all rows.",
    }
    for name, caption in captions.items():
        cards = []
        for row, runs in _distinct(report):
            png = base64.b64encode(runs[0].sheets[name]).decode()
            unit = "FD" if name == "samples" else "PSNR"
            number = _value(runs[0], unit.lower())
            figure = "" if number is None else f", {unit} {number:.1f}"
            cards.append(
                f'<figure><img alt="{name} of {escape(row)}" src="data:image/png;base64,{png}">'
                f"<figcaption>{escape(row)}{figure}</figcaption></figure>"
            )
        if cards:
            parts.append(
                f'<h3>{name.title()}</h3><p class="soft">{caption}</p><div class="cards">{"".join(cards)}</div>'
            )
    return "".join(parts)


def _costs(report: Report) -> str:
    lines = []
    on_gpu = any(one.peak_gpu_mib is not None for one in report.stages)
    for one in report.stages:
        cells = [
            str(one.n),
            "–" if one.seconds is None else f"{one.seconds:.1f} ({one.low:.1f} to {one.high:.1f})",
            f"{one.gflop:,.0f}" if one.gflop else "–",
            "–" if one.seconds is None or not one.gflop else f"{one.gflop / one.seconds:.1f}",
            "–" if one.peak_mib is None else f"{one.peak_mib:.0f}",
            *(["–" if one.peak_gpu_mib is None else f"{one.peak_gpu_mib:.0f}"] if on_gpu else []),
        ]
        lines.append(
            f'<tr><th scope="row">{one.stage}</th>{"".join(f"<td>{c}</td>" for c in cells)}</tr>'
        )
    heads = ["stage", "runs", "seconds, median (range)", "GFLOP", "GFLOP/s", "peak memory, MiB"]
    heads += ["GPU's, MiB"] if on_gpu else []
    parts = [
        "<p>Of the experiments that ran a stage rather than taking it from the cache; seconds are the stage's own, "
        "without the start of its process, on a machine that ran several experiments at once. Operations are counted, "
        "for the parameters of <code>params.yaml</code>.</p>",
        _plain_table("Stages", heads, lines),
    ]
    lines = [
        f'<tr><th scope="row">{escape(one.name)}</th><td>{one.n}</td><td>{one.milliseconds:.1f}</td>'
        f"<td>{_percent(one.added_time)}</td><td>{_percent(one.added_flops)}</td></tr>"
        for one in report.objectives
    ]
    if lines:
        heads = ["objective", "runs", "step, ms (median)", "time added", "operations added"]
        parts += [
            "<h3>What an objective adds to a step of the autoencoder</h3>"
            "<p>Time relative to the runs without an objective, looks and logging included; operations relative to "
            "the autoencoder's. A tiny autoencoder makes the objective look dear: at the paper's sizes it is under 1% "
            "of the operations (<code>make plan</code>).</p>",
            _plain_table("Objectives' costs", heads, lines),
        ]
    if report.tracked:
        lines = [
            f'<tr><th scope="row">{escape(one.stage)}</th><td>{one.finished}</td><td>{one.failed}</td>'
            f"<td>{one.hours:.2f}</td></tr>"
            for one in report.tracked
        ]
        parts += [
            "<h3>Runs in MLflow</h3>",
            _plain_table(
                "Runs in MLflow", ("stage", "finished", "failed or stopped", "hours in all"), lines
            ),
        ]
    return "".join(parts)


def _percent(share: float | None) -> str:
    return "–" if share is None else charts.minus(f"{100 * share:+.0f}%")


def _limits(report: Report) -> str:
    if report.listing.preset != "digits":
        return ""
    return (
        "<p>Digits are 8 × 8 pixels and 1 797 in number, latents 8 tokens of 4 dims, networks a thousandth of the "
        "paper's. That is enough to see whether the parts do their work, whether an effect is larger than the "
        "spread over seeds, and what a loss does to latents. It cannot say which prior is best for photographs: "
        "the semantic features here come from a classifier of the same digits, the textual ones have no more to "
        "do with digits than any other vectors, and the Fréchet distance is on a small classifier's features and "
        "compares with nobody's FID. The sizes were chosen on the same held-out images, at seeds 0 and 1. Real "
        "training images, judged as samples are, stand in the last row of each table: a distance below theirs "
        "means little.</p>"
    )
