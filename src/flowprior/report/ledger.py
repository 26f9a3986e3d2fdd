"""What the experiments cost: time, operations and memory of stages, what an objective adds to a step, MLflow's runs."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from flowprior.config.schema import STAGES, Params
from flowprior.experiments.planned import params_with
from flowprior.experiments.results import Result


class StageCost(NamedTuple):
    """What one stage cost the experiments that ran it.

    Attributes:
        stage: Its name.
        n: Experiments that ran it, rather than taking it from the cache.
        seconds: Median of its own clock, without the start of the process; None where nobody ran it.
        low: Seconds of the fastest.
        high: Seconds of the slowest.
        gflop: Operations in all, counted.
        peak_mib: Median of the process's largest memory.
        peak_gpu_mib: Median of the GPU's largest memory; None without one.
    """

    stage: str
    n: int
    seconds: float | None
    low: float | None
    high: float | None
    gflop: float
    peak_mib: float | None
    peak_gpu_mib: float | None


class ObjectiveCost(NamedTuple):
    """What an objective adds to a step of the autoencoder.

    Attributes:
        name: Bottleneck and objective.
        n: Runs.
        milliseconds: Median of a step, logging and looks included.
        added_time: As a share of the step without an objective; None where that was not run.
        added_flops: As a share of what the autoencoder itself takes; counted; None where a plugin cannot be.
    """

    name: str
    n: int
    milliseconds: float
    added_time: float | None
    added_flops: float | None


class StageRuns(NamedTuple):
    """MLflow's runs of a stage, and their hours in all."""

    stage: str
    finished: int
    failed: int
    hours: float


def stage_costs(params: Params, results: Sequence[Result]) -> list[StageCost]:
    """The costs of all stages in order; operations are those of the given parameters."""
    from flowprior.costs.facts import assumed
    from flowprior.costs.stages import count

    facts = assumed(params)
    ledger = []
    for stage in STAGES:
        work = count(stage, params, facts)
        mine = [one for one in results if stage in one.ran]
        seconds = _costs(mine, f"{stage}.seconds")
        ledger.append(
            StageCost(
                stage,
                len(mine),
                _median(seconds),
                min(seconds, default=None),
                max(seconds, default=None),
                work.num_steps * work.cost.flops / 1e9,
                _median(_costs(mine, f"{stage}.peak_memory_mib")),
                _median(_costs(mine, f"{stage}.peak_gpu_memory_mib")),
            )
        )
    return ledger


def objective_costs(root: Path, results: Sequence[Result]) -> list[ObjectiveCost]:
    """The costs of every pair of bottleneck and objective whose training was timed, as params.yaml stands."""
    from flowprior.costs.facts import assumed
    from flowprior.costs.stages import count

    groups: dict[tuple[str, str], list[Result]] = {}
    for one in results:
        if "train_ae.seconds" in one.costs:
            section = one.params["train_ae"]
            kind = section["autoencoder"]["bottleneck"], section["align"]["objective"]
            groups.setdefault(kind, []).append(one)
    ledger: list[ObjectiveCost] = []
    for (bottleneck, objective), members in groups.items():
        steps = [
            one.costs["train_ae.seconds"] / one.params["train_ae"]["train_ae"]["steps"]
            for one in members
        ]
        params = params_with(members[0].settings, root)
        work = count("train_ae", params, assumed(params))
        ledger.append(
            ObjectiveCost(
                objective if bottleneck == "plain" else f"{bottleneck} + {objective}",
                len(members),
                1e3 * statistics.median(steps),
                None,
                None if work.uncounted else work.parts["alignment"] / work.parts["autoencoder"],
            )
        )
    none = next((one.milliseconds for one in ledger if one.name == "none"), None)
    return [one._replace(added_time=one.milliseconds / none - 1) if none else one for one in ledger]


def tracked_runs(root: Path) -> list[StageRuns]:
    """What MLflow has of experiments' stages; empty where there is no store, or none that answers."""
    from flowprior.ops.tracking import EXPERIMENT, store_uri

    uri = store_uri(root)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return []
    from mlflow import MlflowClient

    wanted = "tags.kind = 'stage' and tags.experiment != 'workspace'"
    try:
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        ids = [experiment.experiment_id] if experiment else []
        runs = client.search_runs(ids, wanted, max_results=50_000) if ids else []
    except Exception as error:  # of MLflow, its database or its server
        print(f"MLflow cannot be read: {error}")
        return []
    ledger = []
    for stage in STAGES:
        mine = [run.info for run in runs if run.data.tags["stage"] == stage]
        ends = [one.end_time or one.start_time for one in mine]
        hours = sum(end - one.start_time for end, one in zip(ends, mine, strict=True)) / 3.6e6
        finished = sum(one.status == "FINISHED" for one in mine)
        failed = sum(one.status in ("FAILED", "KILLED") for one in mine)
        if mine:
            ledger.append(StageRuns(stage, finished, failed, hours))
    return ledger


def _costs(results: Sequence[Result], name: str) -> list[float]:
    return [float(one.costs[name]) for one in results if name in one.costs]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
