"""MLflow runs: one for each execution of a stage. Tracking never stops a run: if it fails it says so once and goes on.

The store is `MLFLOW_TRACKING_URI` if set, else `sqlite:///<root>/mlflow.db` with artifacts in
`<root>/mlruns`. `FLOWPRIOR_MLFLOW=off` turns it off. MLflow is imported at the first flush, not
before.
"""

import fcntl
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowprior.io import digest, write_json

EXPERIMENT = "flowprior"
FLUSH_SECONDS = 20.0
BATCH = 1000


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
        self._pending: list[tuple[str, float, int, int]] = []
        self._last_flush = time.monotonic()
        self._client: Any = None
        self._run_id: str | None = None
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
        if time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self._guard(self._flush)

    def finish(
        self,
        metrics: Mapping[str, Any],
        artifacts: Sequence[Path] = (),
        status: str = "FINISHED",
    ) -> None:
        """Send what is left, the stage's metrics and its figures, and end the run."""
        if not self._enabled:
            return
        now = int(time.time() * 1000)
        self._pending += [
            (name, float(value), now, 0)
            for name, value in metrics.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]

        def send() -> None:
            self._flush()
            for path in artifacts:
                self._client.log_artifact(self._run_id, str(path))
            self._client.set_terminated(self._run_id, status)

        self._guard(send)

    def _guard(self, action: Any) -> None:
        try:
            action()
        except Exception as error:
            self._enabled = False
            print(
                f"{self._stage}: tracking is off for the rest of this stage ({type(error).__name__}: {error}); "
                "metrics are in metrics/",
                file=sys.stderr,
            )

    def _flush(self) -> None:
        if self._run_id is None:
            self._connect()
        from mlflow.entities import Metric

        for start in range(0, len(self._pending), BATCH):
            part = self._pending[start : start + BATCH]
            self._client.log_batch(self._run_id, metrics=[Metric(*point) for point in part])
        self._pending = []
        self._last_flush = time.monotonic()

    def _connect(self) -> None:
        # A server that is down must not hold up training for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        with _QuietMigrations(), (self._root / ".mlflow.lock").open("a") as lock:
            # Creating the database is not safe from several processes at once.
            fcntl.flock(lock, fcntl.LOCK_EX)
            from mlflow import MlflowClient

            uri = os.environ.get("MLFLOW_TRACKING_URI")
            self._client = MlflowClient(uri or f"sqlite:///{self._root / 'mlflow.db'}")
            experiment = self._client.get_experiment_by_name(EXPERIMENT)
            location = None if uri else (self._root / "mlruns").as_uri()
            experiment_id = (
                experiment.experiment_id
                if experiment
                else self._client.create_experiment(EXPERIMENT, artifact_location=location)
            )
        self._run_id = self._remembered() or self._create_run(experiment_id)

    def _create_run(self, experiment_id: str) -> str:
        from mlflow.entities import Param

        name = os.environ.get("DVC_EXP_NAME", "workspace")
        tags = {
            "stage": self._stage,
            "experiment": name,
            "config": digest(self._config)[:12],
            "mlflow.runName": f"{self._stage}/{name}",
        }
        run_id: str = self._client.create_run(experiment_id, tags=tags).info.run_id
        flat = sorted(flatten(self._config).items())
        self._client.log_batch(run_id, params=[Param(k, str(v)) for k, v in flat])
        if self._memory is not None:
            write_json(self._memory, {"run_id": run_id})
        return run_id

    def _remembered(self) -> str | None:
        try:
            run_id: str = json.loads(self._memory.read_text())["run_id"] if self._memory else ""
            self._client.get_run(run_id)
            self._client.update_run(run_id, status="RUNNING")
        except Exception:
            # No memory, or the run was deleted: begin a new one.
            return None
        return run_id


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
