"""MLflow runs: one for each execution of a stage. Tracking never stops a run: if it fails it says so once and goes on.

The stages of a DVC experiment have a parent, which has the experiment's name, its parameters and the stages' headline
figures: one row for each experiment (`tags.kind = 'experiment'`).

What could not be sent is kept in `<root>/.ckpt/tracking`; `python -m flowprior sync` sends it later.

The store is `MLFLOW_TRACKING_URI` if set, else `sqlite:///<root>/mlflow.db` with artifacts in
`<root>/mlruns`. `FLOWPRIOR_MLFLOW=off` turns it off. MLflow is imported at the first flush, not
before.
"""

import fcntl
import json
import os
import re
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowprior.core.io import digest, read_json, write_json
from flowprior.ops.machine import machine

EXPERIMENT = "flowprior"
WORKSPACE = "workspace"
"""What runs outside any DVC experiment are said to belong to."""
FLUSH_SECONDS = 20.0
BATCH = 1000
KEPT = Path(".ckpt/tracking")
"""Below the root: what could not be sent."""


class Tracker:
    """Buffers metrics and sends them in batches.

    Args:
        stage: Name of the stage.
        config: Its resolved parameters.
        root: Where the default store is.
        enabled: False on ranks other than 0.
    """

    def __init__(
        self, stage: str, config: Mapping[str, Any], root: Path, enabled: bool = True
    ) -> None:
        self._stage = stage
        self._config = dict(config)
        self._root = root
        self._enabled = enabled and os.environ.get("FLOWPRIOR_MLFLOW", "on") != "off"
        self._down = False
        self._experiment = os.environ.get("DVC_EXP_NAME", WORKSPACE)
        self._pending: list[tuple[str, float, int, int]] = []
        self._last_flush = time.monotonic()
        self._client: Any = None
        self._run_id: str | None = None
        self._parent_id: str | None = None
        self._machine: dict[str, str | int] | None = None
        self._memory: Path | None = None

    def start(self, memory: Path | None = None) -> None:
        """Begin; `memory` remembers the run's id, so that a resumed stage goes on in the same run."""
        self._memory = memory
        self._last_flush = time.monotonic()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Buffer metrics of one step."""
        if not self._enabled:
            return
        now = int(time.time() * 1000)
        self._pending += [(name, float(value), now, step) for name, value in values.items()]
        if not self._down and time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self._guard(self._flush)

    def finish(
        self,
        metrics: Mapping[str, Any],
        artifacts: Sequence[Path] = (),
        status: str = "FINISHED",
        headline: Sequence[str] = (),
    ) -> None:
        """Send what is left, the stage's metrics and its figures, and end the run.

        Args:
            metrics: Of the stage; those that are no numbers are passed over.
            artifacts: Files.
            status: MLflow's word for how it ended.
            headline: Names of the metrics that the experiment shows as well.
        """
        if not self._enabled:
            return
        now = int(time.time() * 1000)
        self._pending += [
            (name, float(value), now, 0)
            for name, value in metrics.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]

        if not self._down:
            self._guard(lambda: self._end(artifacts, status, headline))
        if self._down:
            self._keep(artifacts, status, headline)

    def _end(self, artifacts: Sequence[Path], status: str, headline: Sequence[str]) -> None:
        shown = {point[0]: point for point in self._pending if point[0] in headline}
        self._flush()
        for path in artifacts:
            self._client.log_artifact(self._run_id, str(path))
        self._client.set_terminated(self._run_id, status)
        if self._parent_id is not None:
            self._send(self._parent_id, list(shown.values()))
            self._client.set_terminated(self._parent_id, status)

    def _guard(self, action: Any) -> None:
        try:
            action()
        except Exception as error:
            self._down = True
            print(
                f"{self._stage}: MLflow cannot be reached ({type(error).__name__}: {error}). The stage goes on, "
                f"its metrics are in metrics/; what is tracked is kept in {self._root / KEPT}, and "
                "`python -m flowprior sync` sends it later",
                file=sys.stderr,
            )

    def _keep(self, artifacts: Sequence[Path], status: str, headline: Sequence[str]) -> None:
        """Write to disk what was not sent."""
        kept = {
            "stage": self._stage,
            "experiment": self._experiment,
            "config": self._config,
            "run_id": self._run_id,
            "points": self._pending,
            "artifacts": [str(path.resolve()) for path in artifacts],
            "status": status,
            "headline": list(headline),
            "machine": machine(),
        }
        try:
            name = f"{int(time.time())}-{self._stage}-{uuid.uuid4().hex[:8]}.json"
            write_json(self._root / KEPT / name, kept)
        except (OSError, ValueError) as error:
            print(f"{self._stage}: what is tracked cannot be kept: {error}", file=sys.stderr)

    def _flush(self) -> None:
        if self._client is None:
            self._connect()
        while self._pending:
            self._send(self._run_id, self._pending[:BATCH])
            self._pending = self._pending[BATCH:]
        self._last_flush = time.monotonic()

    def _send(self, run_id: str | None, points: Sequence[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        self._client.log_batch(run_id, metrics=[Metric(*point) for point in points])

    def _connect(self) -> None:
        # A server that is down must not hold up training for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        with _QuietMigrations(), self._lock_of(uri).open("a") as lock:
            # Creating the database is not safe from several processes at once.
            fcntl.flock(lock, fcntl.LOCK_EX)
            from mlflow import MlflowClient

            self._client = MlflowClient(store_uri(self._root))
            experiment = self._client.get_experiment_by_name(EXPERIMENT)
            location = None if uri else (self._root / "mlruns").as_uri()
            experiment_id = (
                experiment.experiment_id
                if experiment
                else self._client.create_experiment(EXPERIMENT, artifact_location=location)
            )
            self._run_id = self._run_id or self._remembered() or self._create_run(experiment_id)
        tags = self._client.get_run(self._run_id).data.tags
        self._parent_id = tags.get("mlflow.parentRunId")
        if self._parent_id is not None:
            self._client.update_run(self._parent_id, status="RUNNING")

    def _lock_of(self, uri: str | None) -> Path:
        """A file beside the database, which several repositories may share; in the root where there is none."""
        database = re.fullmatch(r"sqlite:///(?:file:)?([^?]+)(?:\?.*)?", uri or "")
        if database is None:
            return self._root / ".mlflow.lock"
        path = Path(database[1])
        beside = path.with_name(f".{path.name}.lock")
        return beside if os.access(path.parent, os.W_OK) else self._root / ".mlflow.lock"

    def _create_run(self, experiment_id: str) -> str:
        tags = {
            "kind": "stage",
            "stage": self._stage,
            "experiment": self._experiment,
            "config": digest(self._config)[:12],
            "mlflow.runName": f"{self._stage}/{self._experiment}",
            **{name: str(value) for name, value in (self._machine or machine()).items()},
        }
        if self._experiment != WORKSPACE:
            tags["mlflow.parentRunId"] = self._find_parent(experiment_id)
        run_id: str = self._client.create_run(experiment_id, tags=tags).info.run_id
        self._log_params(run_id, flatten(self._config))
        if self._memory is not None:
            write_json(self._memory, {"run_id": run_id})
        return run_id

    def _find_parent(self, experiment_id: str) -> str:
        """The DVC experiment's run; a new one where there is none, or one of that name with other parameters."""
        params = {name: str(value) for name, value in flatten(self._config).items()}
        wanted = f"tags.kind = 'experiment' and tags.experiment = '{self._experiment}'"
        for run in self._client.search_runs([experiment_id], wanted):
            if all(run.data.params.get(name, value) == value for name, value in params.items()):
                parent_id: str = run.info.run_id
                break
        else:
            tags = {"kind": "experiment", "experiment": self._experiment}
            parent_id = self._client.create_run(
                experiment_id, tags=tags | {"mlflow.runName": self._experiment}
            ).info.run_id
        self._log_params(parent_id, params)
        return parent_id

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        named = [Param(name, str(value)) for name, value in sorted(params.items())]
        self._client.log_batch(run_id, params=named)

    def _remembered(self) -> str | None:
        try:
            run_id: str = json.loads(self._memory.read_text())["run_id"] if self._memory else ""
            self._client.get_run(run_id)
            self._client.update_run(run_id, status="RUNNING")
        except Exception:
            # No memory, or the run was deleted: begin a new one.
            return None
        return run_id


def store_uri(root: Path) -> str:
    """Where runs of a repository are: `MLFLOW_TRACKING_URI`, else a database in its root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"


def send_kept(root: Path) -> int:
    """Send what trackers could not, and forget it; how many runs that were.

    Raises:
        ArtifactError: A file of it is damaged.
        Exception: Whatever the store raises; what was not sent is still there then.
    """
    files = sorted((root / KEPT).glob("*.json"))
    for file in files:
        kept = read_json(file)
        tracker = Tracker(kept["stage"], kept["config"], root)
        tracker._experiment, tracker._run_id = kept["experiment"], kept["run_id"]
        tracker._machine = kept.get("machine")
        tracker._pending = [tuple(point) for point in kept["points"]]
        here = [path for name in kept["artifacts"] if (path := Path(name)).is_file()]
        tracker._end(here, kept["status"], kept.get("headline", ()))
        file.unlink()
    return len(files)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


class _QuietMigrations:
    """Creating MLflow's database prints a page of migrations; hide them."""

    def __enter__(self) -> None:
        import logging

        self._level = logging.root.manager.disable
        logging.disable(logging.INFO)

    def __exit__(self, *_: object) -> None:
        import logging

        logging.disable(self._level)
