"""What a stage leaves besides its data: facts in git, costs beside them, both in MLflow."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowprior.core.io import write_json
from flowprior.ops.machine import write_costs
from flowprior.ops.tracking import Tracker


def record(
    root: Path,
    stage: str,
    facts: Mapping[str, Any],
    tracker: Tracker,
    seconds: float,
    *,
    figures: Sequence[Path] = (),
    headline: Sequence[str] = (),
    began_at: str | None = None,
    **rates: float,
) -> None:
    """Write a stage's metrics and end its run.

    `metrics/<stage>.json` gets the facts: a function of inputs, parameters and kind of machine. What differs from run
    to run goes to `metrics/costs/<stage>.json`, see `write_costs`.

    Args:
        root: Of the workspace.
        stage: Its name.
        facts: Flat, as JSON has them.
        tracker: Of the stage's run in MLflow, which gets facts and costs.
        seconds: It took.
        figures: Files for MLflow.
        headline: Names of the facts that an experiment's parent run shows as well.
        began_at: Commit of other code that began the run, if any.
        rates: For instance `images_per_second`.
    """
    write_json(root / f"metrics/{stage}.json", dict(facts))
    costs = write_costs(root, stage, seconds, began_at, **rates)
    tracker.finish({**facts, **costs}, figures, headline=headline)
