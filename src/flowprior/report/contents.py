"""What the report holds: tables, what became of the claims, costs; put together from results."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from flowprior.config import params
from flowprior.experiments.campaign import State
from flowprior.experiments.claims import Finding, Summary, findings, summary
from flowprior.experiments.listing import Listed, Listing, listed, settle
from flowprior.experiments.results import Result
from flowprior.report.charts import minus
from flowprior.report.ledger import (
    ObjectiveCost,
    Runs,
    StageCost,
    objective_costs,
    stage_costs,
    tracked_runs,
)


class Cell(NamedTuple):
    """Of a table: what stands there, and whether it is the best of its column."""

    text: str
    best: bool = False


class Grid(NamedTuple):
    """A table of the report.

    Attributes:
        name: In tables.yaml.
        title: Above it.
        head: Of the columns behind the row's name.
        rows: Name (marked where older code made it), and cells.
        paper_source: Where the last columns come from; empty where there are none.
        paper_head: Their heads.
        paper: Their cells by row.
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
        listing: What was to run.
        runs: Results of each row of each table, by seed.
        grids: The tables.
        findings: Of the claims.
        real: What held-out real images are compared with real training images; empty where that is not known.
        missing: Names of experiments without a result.
        older: Names of experiments whose results other code made.
        stages: Their costs.
        objectives: Theirs.
        tracked: Runs in MLflow.
        machines: What the results were made on, in words.
        facts: What judged the images, in words.
    """

    listing: Listing
    runs: Mapping[str, Mapping[str, Sequence[Result]]]
    grids: Sequence[Grid]
    findings: Sequence[Finding]
    real: Mapping[str, float]
    missing: Sequence[str]
    older: Sequence[str]
    stages: Sequence[StageCost]
    objectives: Sequence[ObjectiveCost]
    tracked: Sequence[Runs]
    machines: Sequence[str]
    facts: Sequence[str]


def build(root: Path, listing: Listing, state: State) -> Report:
    """Put the report together."""
    found = listed(listing)
    runs = runs_of(found, state.results)
    older = {one.key for one in state.wanted if state.older(one)}
    real = real_images(listing)

    def values(table: str | None, row: str, metric: str) -> list[float]:
        tables = [runs[table]] if table else list(runs.values())
        of_row = next((rows[row] for rows in tables if row in rows), ())
        return numbers(of_row, metric)

    there = [state.results[one.key] for one in state.wanted if one.key in state.results]
    cfg = settle((f"preset={listing.preset}",), params.read_yaml(params.ROOT / "params.yaml"))
    return Report(
        listing,
        runs,
        [grid(name, listing, runs[name], older, real) for name in listing.tables],
        findings(listing, values),
        real,
        [one.name for one in state.wanted if one.key not in state.results],
        [one.name for one in state.wanted if one.key in older],
        stage_costs(cfg, there),
        objective_costs(state.wanted, state.results),
        tracked_runs(root),
        _machines(there),
        _facts(there),
    )


def runs_of(
    found: Sequence[Listed], results: Mapping[str, Result]
) -> dict[str, dict[str, list[Result]]]:
    """Results of every row of every table, in the order of seeds."""
    runs: dict[str, dict[str, list[Result]]] = {}
    for one in found:
        of_row = runs.setdefault(one.table, {}).setdefault(one.row, [])
        if one.experiment.key in results:
            of_row.append(results[one.experiment.key])
    return runs


def numbers(runs: Sequence[Result], metric: str) -> list[float]:
    """A metric of some runs; those that lack it are passed over."""
    found = (run.metrics.get(metric) for run in runs)
    return [float(x) for x in found if isinstance(x, int | float) and math.isfinite(x)]


def grid(
    name: str,
    listing: Listing,
    runs: Mapping[str, Sequence[Result]],
    older: set[str],
    real: Mapping[str, float],
) -> Grid:
    """One table: mean ± standard deviation over seeds."""
    everything = [run for of_row in runs.values() for run in of_row]
    columns = [c for c in listing.columns if numbers(everything, c.metric)]
    cells: dict[str, list[Cell]] = {row: [] for row in runs}
    for column in columns:
        found = {row: summary(numbers(of_row, column.metric)) for row, of_row in runs.items()}
        present = {row: one for row, one in found.items() if one.n}
        best = min(present, key=lambda row: worse(present[row].mean, column.better))
        for row, one in found.items():
            cells[row].append(
                Cell(plus_minus(one, column.digits), row == best and len(present) > 1)
            )
    rows = [(_marked(row, runs[row], older, len(listing.seeds)), cells[row]) for row in runs]
    if any(c.metric in real for c in columns):
        shown = [f"{real[c.metric]:.{c.digits}f}" if c.metric in real else "" for c in columns]
        rows.append(("real training images", [Cell(minus(text)) for text in shown]))
    published = listing.paper.get(name)
    return Grid(
        name,
        listing.tables[name].title,
        [column.name for column in columns],
        rows,
        published.source if published else "",
        published.columns if published else [],
        {row: text.split() for row, text in published.rows.items()} if published else {},
    )


def worse(value: float, better: str) -> float:
    """How far from the best; smaller is better."""
    return {"higher": -value, "lower": value, "zero": abs(value), "one": abs(value - 1)}[better]


def plus_minus(one: Summary, digits: int) -> str:
    """A mean with its standard deviation."""
    if not one.n:
        return "–"
    mean = f"{one.mean:.{digits}f}"
    return minus(mean if math.isnan(one.std) else f"{mean} ± {one.std:.{digits}f}")


def _marked(row: str, runs: Sequence[Result], older: set[str], seeds: int) -> str:
    mark = " †" if any(run.key in older for run in runs) else ""
    few = f" (n = {len(runs)})" if 0 < len(runs) < seeds else ""
    return f"{row}{mark}{few}"


def real_images(listing: Listing) -> dict[str, float]:
    """What the evaluator says of real training images against the held-out ones; for digits, whose images are here."""
    cfg = settle((f"preset={listing.preset}",), params.read_yaml(params.ROOT / "params.yaml"))
    if not cfg.on_digits:
        return {}
    import torch

    from flowprior.evaluation.digits import OnDigits
    from flowprior.images.opening import open_images
    from flowprior.images.pixels import to_uint8

    train, held_out = (
        open_images(split=split, **cfg.image_source) for split in ("train", "validation")
    )
    each = cfg.scale.sample_eval.num_samples // train.num_classes
    rows = torch.cat(
        [(train.labels == label).nonzero()[:each, 0] for label in train.labels.unique()]
    )
    judge = OnDigits(train, held_out, cfg.scale.sample_eval.batch_images)
    found = judge.judge([to_uint8(train.images(rows))], train.labels[rows])
    return {f"sample_eval.{name}": value for name, value in found.items() if value is not None}


def _machines(results: Sequence[Result]) -> list[str]:
    found: dict[str, int] = {}
    for one in results:
        m = one.machine
        name = (
            f"{m.get('gpu', m['cpu'])}, {m['threads']} thread{'s' * (m['threads'] > 1)} each, "
            f"torch {m['torch']}, Python {m['python']}"
            if m
            else "a machine that is not known"
        )
        found[name] = found.get(name, 0) + 1
    return [f"{count} on {name}" for name, count in found.items()]


def _facts(results: Sequence[Result]) -> list[str]:
    if not results:
        return []
    metrics = results[0].metrics
    return [
        f"{metrics['sample_eval.num_samples']} samples of each run against {metrics['sample_eval.num_real']} real "
        f"held-out images, features of {metrics['sample_eval.extractor']}",
        f"guidance {metrics['sample_eval.guidance_scale']:g}",
        f"{metrics['encode_latents.num_images']} held-out images reconstructed",
    ]
