"""What the report holds, put together from results: tables, what became of the claims, costs."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from flowprior.config.schema import Params
from flowprior.experiments.claims import Finding, Summary, findings, summary
from flowprior.experiments.planned import Entry, experiments, params_with
from flowprior.experiments.results import Result
from flowprior.experiments.status import status
from flowprior.experiments.tables_file import TablesFile
from flowprior.report.ledger import (
    ObjectiveCost,
    StageCost,
    StageRuns,
    objective_costs,
    stage_costs,
    tracked_runs,
)

Rows = Mapping[str, Sequence[Result]]
"""Results of each row of a table, in the order of seeds."""


class Cell(NamedTuple):
    """A cell of a table: its text, and whether it is the best of its column."""

    text: str
    best: bool = False


class ReportTable(NamedTuple):
    """A table of the report.

    Attributes:
        name: Its name in tables.yaml.
        title: What stands above it.
        head: Heads of our columns.
        rows: Each row's name (marked where some of its results are outdated or missing) and our cells.
        paper_source: Where the paper's columns come from; empty where there are none.
        paper_head: Heads of the paper's columns.
        paper: The paper's cells, by row.
    """

    name: str
    title: str
    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    paper_source: str
    paper_head: Sequence[str]
    paper: Mapping[str, Sequence[str]]


class Report(NamedTuple):
    """All that the page shows.

    Attributes:
        file: What was to run, and what is claimed.
        runs: Results by table and row.
        tables: The tables.
        findings: What the results say of the claims.
        real: Metrics of real training images, judged as samples are; empty where these images are not at hand.
        num_results: Experiments that have a result.
        missing: Names of those without one.
        outdated: Names of those whose outcome would be another today.
        resumed: Names of those of which a stage went on from a checkpoint of other code (of the same version).
        stages: What the stages cost.
        objectives: What the objectives add to a step of the autoencoder.
        tracked: Runs in MLflow.
        machines: What the results were made on, in words.
        facts: What judged the images, in words.
    """

    file: TablesFile
    runs: Mapping[str, Rows]
    tables: Sequence[ReportTable]
    findings: Sequence[Finding]
    real: Mapping[str, float]
    num_results: int
    missing: Sequence[str]
    outdated: Sequence[str]
    resumed: Sequence[str]
    stages: Sequence[StageCost]
    objectives: Sequence[ObjectiveCost]
    tracked: Sequence[StageRuns]
    machines: Sequence[str]
    facts: Sequence[str]


def build(
    root: Path, file: TablesFile, entries: Sequence[Entry], results: Mapping[str, Result]
) -> Report:
    """Put the report together.

    Args:
        root: The repository.
        file: Its tables.yaml, or another.
        entries: The rows of that file, see `experiments.planned.entries`.
        results: Results by name; those that no row asks for are passed over.
    """
    statuses = [status(one, results.get(one.name)) for one in experiments(entries)]
    there = [one.result for one in statuses if one.result is not None]
    outdated = [one.experiment.name for one in statuses if one.outdated]
    runs = runs_of(entries, results)
    params = params_with([f"preset={file.preset}"], root)
    real = real_images(params)

    def values(table: str | None, row: str, metric: str) -> list[float]:
        candidates = [runs[table]] if table else list(runs.values())
        return numbers(next((rows[row] for rows in candidates if row in rows), ()), metric)

    return Report(
        file=file,
        runs=runs,
        tables=[report_table(name, file, runs[name], outdated, real) for name in file.tables],
        findings=findings(file, values),
        real=real,
        num_results=len(there),
        missing=[one.experiment.name for one in statuses if one.result is None],
        outdated=outdated,
        resumed=[one.name for one in there if one.resumed],
        stages=stage_costs(params, there),
        objectives=objective_costs(root, there),
        tracked=tracked_runs(root),
        machines=_machines(there),
        facts=_facts(there),
    )


def runs_of(entries: Sequence[Entry], results: Mapping[str, Result]) -> dict[str, Rows]:
    """Results by table and row."""
    runs: dict[str, dict[str, list[Result]]] = {}
    for entry in entries:
        of_row = runs.setdefault(entry.table, {}).setdefault(entry.row, [])
        if entry.experiment.name in results:
            of_row.append(results[entry.experiment.name])
    return dict(runs)


def numbers(runs: Sequence[Result], metric: str) -> list[float]:
    """A metric of some runs; those that lack it are passed over."""
    values = (run.metrics.get(metric) for run in runs)
    return [float(x) for x in values if isinstance(x, int | float) and math.isfinite(x)]


def words(runs: Sequence[Result], metric: str) -> str:
    """A metric that is a word, with how many runs have it; the commonest first, a dash without any."""
    return counted(value for run in runs if isinstance(value := run.metrics.get(metric), str))


def counted(words: Iterable[str]) -> str:
    """Each word with how often it is there, the commonest first; a dash without any."""
    return ", ".join(f"{word} ({n})" for word, n in Counter(words).most_common()) or "–"


def report_table(
    name: str, file: TablesFile, runs: Rows, outdated: Sequence[str], real: Mapping[str, float]
) -> ReportTable:
    """A table of mean ± standard deviation over seeds; columns that no run has are left out.

    Args:
        name: The table in the file.
        file: With columns, and what the paper has of the table.
        runs: Results by row.
        outdated: Names of results that rows are marked for.
        real: Metrics of real images, a last row.
    """
    everything = [run for of_row in runs.values() for run in of_row]
    columns = [c for c in file.columns if numbers(everything, c.metric)]
    cells: dict[str, list[Cell]] = {row: [] for row in runs}
    for column in columns:
        summaries = {row: summary(numbers(of_row, column.metric)) for row, of_row in runs.items()}
        present = [row for row, one in summaries.items() if one.n]
        best = min(present, key=lambda row: worse(summaries[row].mean, column.better))
        for row, one in summaries.items():
            text = plus_minus(one, column.digits)
            cells[row].append(Cell(text, row == best and len(present) > 1))
    rows = [(_marked(row, runs[row], outdated, len(file.seeds)), cells[row]) for row in runs]
    if any(c.metric in real for c in columns):
        texts = [f"{real[c.metric]:.{c.digits}f}" if c.metric in real else "" for c in columns]
        rows.append(("real training images", [Cell(minus(text)) for text in texts]))
    published = file.paper.get(name)
    return ReportTable(
        name,
        file.tables[name].title,
        [column.name for column in columns],
        rows,
        published.source if published else "",
        published.columns if published else [],
        {row: text.split() for row, text in published.rows.items()} if published else {},
    )


def worse(value: float, better: str) -> float:
    """How far a value is from the best there could be, given what is `better` (see `tables_file.Column`)."""
    return {"higher": -value, "lower": value, "zero": abs(value), "one": abs(value - 1)}[better]


def plus_minus(one: Summary, digits: int) -> str:
    """A mean with its standard deviation, where there is one."""
    if not one.n:
        return "–"
    mean = f"{one.mean:.{digits}f}"
    return minus(mean if math.isnan(one.std) else f"{mean} ± {one.std:.{digits}f}")


def minus(text: str) -> str:
    """A text with the minus sign that is as wide as a plus in place of hyphens."""
    return text.replace("-", "−")


def _marked(row: str, runs: Sequence[Result], outdated: Sequence[str], seeds: int) -> str:
    mark = " †" if any(run.name in outdated for run in runs) else ""
    few = f" (n = {len(runs)})" if 0 < len(runs) < seeds else ""
    return f"{row}{mark}{few}"


def real_images(params: Params) -> dict[str, float]:
    """Metrics of real training images against the held-out ones, by `stage.name`; empty but for digits."""
    if not params.on_digits:
        return {}
    import torch

    from flowprior.evaluation.digits import OnDigits
    from flowprior.images.opening import open_both_splits
    from flowprior.images.pixels import to_uint8

    train, held_out = open_both_splits(params.image_source)
    each = params.sample_eval.num_samples // train.num_classes
    classes = train.labels.unique()
    rows = torch.cat([(train.labels == label).nonzero()[:each, 0] for label in classes])
    judge = OnDigits(train, held_out, params.sample_eval.batch_images)
    judged = judge.judge([to_uint8(train.images(rows))], train.labels[rows])
    return {f"sample_eval.{name}": value for name, value in judged.items() if value is not None}


def _machines(results: Sequence[Result]) -> list[str]:
    names = []
    for m in (one.machine for one in results):
        names.append(
            f"{m.get('gpu', m['cpu'])}, {m['threads']} thread{'s' * (m['threads'] > 1)} each, "
            f"torch {m['torch']}, Python {m['python']}"
            if m
            else "a machine that is not known"
        )
    return [f"{count} on {name}" for name, count in Counter(names).items()]


def _facts(results: Sequence[Result]) -> list[str]:
    if not results:
        return []
    metrics = results[0].metrics
    judged = f"{metrics['sample_eval.num_samples']} samples of each run"
    if metrics["sample_eval.extractor"]:
        judged += (
            f" against {metrics['sample_eval.num_real']} real held-out images, "
            f"features of {metrics['sample_eval.extractor']}"
        )
    return [
        judged,
        f"guidance {metrics['sample_eval.guidance_scale']:g}",
        f"{metrics['encode_latents.num_images']} held-out images reconstructed",
    ]
