"""What the experiments cost: time, operations and memory of stages, what an objective adds to a step, MLflow's runs."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from flowprior.config import params
from flowprior.config.params import Params
from flowprior.costs import stages as costs
from flowprior.experiments.listing import Experiment, settle
from flowprior.experiments.results import Result


class StageCost(NamedTuple):
    """Of one stage over the experiments that ran it.

    Attributes:
        stage: Its name.
        n: Experiments that ran it, rather than taking it from the cache.
        seconds: Median of its own clock, without the start of the process; None where nobody ran it.
        low: The fastest.
        high: The slowest.
        gflop: Operations in all, counted.
        peak_mib: Median of the most memory of the process.
        peak_gpu_mib: Likewise of the GPU's; None without one.
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
        added_time: Share of the step without an objective; None where that was not run.
        added_flops: Counted, as a share of what the autoencoder itself takes.
    """

    name: str
    n: int
    milliseconds: float
    added_time: float | None
    added_flops: float


def stage_costs(cfg: Params, results: Sequence[Result]) -> list[StageCost]:
    """Of all stages in order; operations are those of the given parameters."""
    facts = costs.assumed(cfg)
    found = []
    for stage, plan in costs.STAGES.items():
        work = plan(cfg, facts)
        mine = [one.metrics for one in results if stage in one.ran]
        seconds = _numbers(mine, f"{stage}.seconds")
        found.append(
            StageCost(
                stage,
                len(mine),
                _median(seconds),
                min(seconds, default=None),
                max(seconds, default=None),
                work.num_steps * work.cost.flops / 1e9,
                _median(_numbers(mine, f"{stage}.peak_memory_mib")),
                _median(_numbers(mine, f"{stage}.peak_gpu_memory_mib")),
            )
        )
    return found


def objective_costs(
    experiments: Sequence[Experiment], results: Mapping[str, Result]
) -> list[ObjectiveCost]:
    """Of every bottleneck and objective that was run."""
    tree = params.read_yaml(params.ROOT / "params.yaml")
    groups: dict[tuple[str, str], list[Experiment]] = {}
    for one in experiments:
        if one.key in results and "train_ae" in results[one.key].ran:
            ae = one.resolved["train_ae"]
            kind = ae["autoencoder"]["bottleneck"], ae["align"]["objective"]
            groups.setdefault(kind, []).append(one)
    found: list[ObjectiveCost] = []
    for (bottleneck, objective), members in groups.items():
        steps = members[0].resolved["train_ae"]["scale.train_ae"]["steps"]
        seconds = _numbers([results[one.key].metrics for one in members], "train_ae.seconds")
        cfg = settle(members[0].settings, tree)
        parts = costs.train_ae(cfg, costs.assumed(cfg)).parts
        name = objective if bottleneck == "plain" else f"{bottleneck} + {objective}"
        share = parts["alignment"] / parts["autoencoder"]
        found.append(
            ObjectiveCost(name, len(members), 1e3 * statistics.median(seconds) / steps, None, share)
        )
    none = next((one.milliseconds for one in found if one.name == "none"), None)
    return [one._replace(added_time=one.milliseconds / none - 1) if none else one for one in found]


class Runs(NamedTuple):
    """MLflow's runs of a stage."""

    stage: str
    finished: int
    failed: int
    hours: float


def tracked_runs(root: Path) -> list[Runs]:
    """What MLflow has of the stages of experiments; empty where there is no store, or it cannot be reached."""
    from flowprior.ops.tracking import EXPERIMENT, store_uri

    uri = store_uri(root)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return []
    from mlflow import MlflowClient

    try:
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        runs = []
        page = None
        while experiment and (page is None or page.token):
            page = client.search_runs(
                [experiment.experiment_id],
                "tags.kind = 'stage' and tags.experiment != 'workspace'",
                page_token=page.token if page else None,
            )
            runs += page
    except Exception as error:
        print(f"MLflow cannot be read: {error}")
        return []
    found: dict[str, list[tuple[str, float]]] = {stage: [] for stage in params.SCIENCE}
    for run in runs:
        hours = ((run.info.end_time or run.info.start_time) - run.info.start_time) / 3.6e6
        found.setdefault(run.data.tags["stage"], []).append((run.info.status, hours))
    return [
        Runs(
            stage,
            sum(status == "FINISHED" for status, _ in of_stage),
            sum(status in ("FAILED", "KILLED") for status, _ in of_stage),
            sum(hours for _, hours in of_stage),
        )
        for stage, of_stage in found.items()
        if of_stage
    ]


def _numbers(metrics: Sequence[Mapping[str, object]], name: str) -> list[float]:
    return [float(value) for one in metrics if isinstance(value := one.get(name), int | float)]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
