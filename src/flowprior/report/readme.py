"""Bring the numbers of README.md's tables up to date with the committed metrics.

Reads   metrics/
Writes  README.md

    python -m flowprior.report.readme

Only numbers change, each with as many digits as it has; rows, words and what a number means stay
(`tests/test_readme.py` tells where the two differ). Tables of the report (`make report`) are taken from it whole.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
TOY_HEADER = "| objective | pulls by |"
TOY_COLUMNS = ("within_mode_std_ratio", "coverage", "recall", "nll_gap")
THEORY_HEADER = "| | target samples | the pulled latents |"
THEORY_ROWS = ("alignment", "alignment_minus_divergence", "weighted")
THEORY_COLUMNS = ("targets", "latents", "off_target")
RESULT = re.compile(r"^\| `(\w+)\.(\w+)` \| ([-\d.]+)(?: \| ([-\d.]+))? \|", re.MULTILINE)
"""A row of the results: stage and name of a metric, its value, the guided one."""
REPORTED = re.compile(r"<!-- report: (.+?) -->\n.*?<!-- end -->", re.DOTALL)
"""Where a table of the report stands: its title there."""
BENCH = re.compile(r"<!-- bench: ([\w-]+) -->\n.*?<!-- end -->", re.DOTALL)
"""Where the benchmarks of a machine stand: its name in `metrics/bench_<machine>.json`."""
TRAINED = ("train_flow", "train_ae", "train_mar")
"""Stages whose steps' data and logging are timed."""
CHEAP = 0.05
"""Objectives below this share of `flow_prior`'s cost are not told apart."""


def read(root: Path, name: str) -> Any:
    """A metrics file."""
    return json.loads((root / f"metrics/{name}.json").read_text(encoding="utf-8"))


def like(value: float, shown: str) -> str:
    """The value with as many digits as what is shown."""
    return f"{value:.{len(shown.partition('.')[2])}f}"


def updated(text: str, root: Path = ROOT) -> str:
    """README's text with the numbers of the metrics below a root."""

    def result(row: re.Match[str]) -> str:
        stage, name, plain, guided = row.groups()
        metrics = read(root, stage)
        cells = [like(metrics[name], plain)]
        if guided:
            cells.append(like(metrics[f"{name}_guided"], guided))
        return f"| `{stage}.{name}` | {' | '.join(cells)} |"

    text = RESULT.sub(result, text)
    text = _table(text, TOY_HEADER, 1, lambda name, i: _toy(root, name, i))
    text = REPORTED.sub(lambda found: _reported(root, found[1]), text)
    text = BENCH.sub(lambda found: _benched(root, found[1]), text)
    theory = read(root, "toy/theory_mixture")
    rows = iter(range(3 * len(THEORY_ROWS)))

    def coefficients(_: str, column: int) -> list[float]:
        stem = f"spearman_{THEORY_ROWS[next(rows) // 3]}_{THEORY_COLUMNS[column]}"
        return [theory[f"{stem}_closed_form"], theory[f"{stem}_trained"]]

    return _table(text, THEORY_HEADER, 0, coefficients)


def _benched(root: Path, machine: str) -> str:
    """The benchmarks of one machine: a table, and in words what has no plain twin."""
    found = read(root, f"bench_{machine}")
    facts = found["machine"]
    lines = [
        f"{facts.get('gpu', facts['cpu'])}, {facts['threads']} threads, torch {facts['torch']}; a product of two large "
        f"matrices runs at {facts['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s there.",
        "",
        "| what | compared with | times as fast | ms | of a matrix product's rate |",
        "|---|---|---|---|---|",
    ]
    for one in found.values():
        if "ratio" in one:
            share = f"{one['share_of_matmul']:.0%}" if "share_of_matmul" in one else ""
            shown = f"{one['ratio']:.2f} | {1e3 * one['seconds']:.1f} | {share}"
            lines.append(f"| {one['what']} | {one['twin']} | {shown} |")
    fast, guided, smoke = (
        found[name] for name in ("mar_sample_fast", "mar_sample_fast_guided", "smoke")
    )
    memory = ", ".join(
        f"`{stage}` {found['memory'][f'{stage}_mib_1x']:.0f} and {found['memory'][f'{stage}_mib_10x']:.0f}"
        for stage in ("extract_features", "project", "train_flow")
    )
    data, logging = (
        ", ".join(
            f"{found[f'{stage}_overhead'][f'{part}_share']:.1%} in `{stage}`" for stage in TRAINED
        )
        for part in ("data", "logging")
    )
    costs = {
        name.removesuffix("_to_flow_prior"): cost for name, cost in found["objectives"].items()
    }
    dear = sorted((cost, name) for name, cost in costs.items() if cost > CHEAP)
    lines += [
        "",
        f"- Alignment adds {found['ae_step']['alignment_adds']:.0%} to that autoencoder's step. An objective's value "
        "and gradient cost, relative to `flow_prior`'s at the paper's widths and draws: "
        f"{', '.join(f'`{name}` {cost:.1f}' for cost, name in dear if name != 'flow_prior')}, the others less than "
        f"{CHEAP}; `dmd`'s include the losses and gradients of five updates of its own flow.",
        f"- Fewer steps of sampling change the digits' Fréchet distance from {fast['fd_digits_usual']:.1f} to "
        f"{fast['fd_digits']:.1f}, its standard deviation over draws is {fast['fd_digits_std_over_draws']:.1f} "
        f"(guided: from {guided['fd_digits_usual']:.1f} to {guided['fd_digits']:.1f}, "
        f"{guided['fd_digits_std_over_draws']:.1f}).",
        f"- Peak of memory of its own in MiB with 100 000 vectors and with ten times as many: {memory}.",
        f"- Of a step, data take {data}; logging {logging}. Sending to MLflow takes "
        f"{found['mlflow']['share']:.1%} of the time between two sendings. Of encoding digits, reading them and "
        f"writing latents take {found['encode_latents']['share_of_stage']:.0%}.",
        f"- The smoke preset's stages take {smoke['seconds']:.0f} s without MLflow, each in a process of its own; "
        f"{smoke['imports_seconds']:.0f} s of that are imports, {smoke['import_torch_seconds']:.0f} s of them "
        "`import torch`. `import flowprior` takes "
        f"{1e3 * found['import_flowprior']['seconds']:.0f} ms, `from flowprior import FlowPrior` "
        f"{found['import_FlowPrior']['to_import_torch']:.2f} times as long as `import torch`.",
    ]
    return "\n".join([f"<!-- bench: {machine} -->", *lines, "<!-- end -->"])


def _reported(root: Path, title: str) -> str:
    """A table of the report, the first below its title."""
    text = (root / "metrics/report.md").read_text(encoding="utf-8")
    _, found, after = text.partition(f"\n## {title}\n")
    if not found:
        raise ValueError(f"metrics/report.md has no table {title!r}")
    table = re.search(r"^\|.*?(?=\n\n|\n?\Z)", after, re.DOTALL | re.MULTILINE)
    if table is None:
        raise ValueError(f"metrics/report.md has no table below {title!r}")
    return f"<!-- report: {title} -->\n{table[0]}\n<!-- end -->"


def _toy(root: Path, name: str, column: int) -> list[float]:
    return [read(root, f"toy/objectives/{name}")[TOY_COLUMNS[column]]]


def _table(text: str, header: str, words: int, values: Any) -> str:
    """Rewrite the numbers of the table below a header; `words` cells behind the first hold none."""
    before, found, after = text.partition(f"\n{header}")
    if not found:
        raise ValueError(f"README.md has no table {header!r}")
    body, end, rest = after.partition("\n\n")
    lines = body.split("\n")
    for at, line in enumerate(lines[2:], 2):
        first, *cells = line.strip("|").split("|")
        for column, cell in enumerate(cells[words:]):
            cells[words + column] = _cell(cell, values(first.strip().strip("`"), column))
        lines[at] = f"|{'|'.join([first, *cells])}|"
    return before + found + "\n".join(lines) + end + rest


def _cell(cell: str, values: Sequence[float]) -> str:
    waiting = iter(values)
    return re.sub(r"-?\d+(?:\.\d+)?", lambda number: like(next(waiting), number[0]), cell)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")
