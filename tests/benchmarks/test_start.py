"""What is not work: imports, and their share of the smallest pipeline; data and logging, and their share of training.

Run with `make bench`, after `dvc repro`: training is that of the digits preset, on its artifacts.
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from flowprior.config.presets import load_params
from flowprior.config.schema import STAGES
from flowprior.core.shards import Column
from flowprior.ops.tracking import FLUSH_SECONDS, Tracker
from flowprior.training.ahead import Ahead
from flowprior.training.session import Session

from .conftest import ROOT, keep, running, workspace

ROUNDS = 3
STEPS = {"train_flow": 1000, "train_ae": 100, "train_mar": 100}
"""Of training, of which the parts are timed: long enough that its start does not count."""
POINTS = 400
"""Figures that are sent to MLflow at once."""


def seconds_of(code: str, rounds: int = ROUNDS) -> float:
    """Median of a fresh process."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'stages'}"}
    found = []
    for _ in range(rounds):
        clock = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], env=env, check=True)
        found.append(time.perf_counter() - clock)
    return statistics.median(found)


def test_imports(benchmark) -> None:
    """Seconds beyond a bare Python's; `from flowprior import FlowPrior` also relative to `import torch`."""
    bare = seconds_of("pass")
    torch = seconds_of("import torch")
    keep("import_flowprior", {"seconds": seconds_of("import flowprior") - bare})
    ours = seconds_of("from flowprior import FlowPrior")
    keep(
        "import_FlowPrior",
        {"seconds": ours - bare, "to_import_torch": (ours - bare) / (torch - bare)},
    )
    for stage in STAGES:
        keep(f"import_{stage}", {"seconds": seconds_of(f"import {stage}") - bare})
    benchmark.pedantic(lambda: seconds_of("pass", 1), rounds=1)


def test_the_smallest_pipeline(benchmark, tmp_path: Path) -> None:
    """Seconds of the smoke preset's stages, without MLflow, each in a process; then again, what of it are imports."""
    seconds = {}
    for stage, took, _ in smoke(tmp_path / "plain"):
        seconds[f"{stage}_seconds"] = took
    imports, of_torch = 0.0, 0.0
    for _, _, said in smoke(tmp_path / "timed", "-X", "importtime"):
        imports += sum(map(int, re.findall(r"^import time: +(\d+) \|", said, re.MULTILINE))) / 1e6
        of_torch += sum(map(int, re.findall(r"\| +(\d+) \| +torch$", said, re.MULTILINE))) / 1e6
    found = {"imports_seconds": imports, "import_torch_seconds": of_torch, **seconds}
    keep("smoke", {"seconds": sum(seconds.values()), **found})
    benchmark.pedantic(lambda: found, rounds=1)


def smoke(folder: Path, *options: str) -> Iterator[tuple[str, float, str]]:
    """Run the smoke preset's stages; name, seconds and what each wrote to its stderr."""
    folder.mkdir()
    env = workspace(folder, lambda tree: tree.update(preset="smoke"))
    for stage in STAGES:
        clock = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *options, "-c", running(stage)],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
        yield stage, time.perf_counter() - clock, done.stderr


@pytest.mark.parametrize("stage", ["train_flow", "train_ae", "train_mar"])
def test_what_is_not_training(
    benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Share of a step that goes into its data, and into the curve of training, of which MLflow gets rows."""
    on_digits = load_params(ROOT).on_digits
    if not on_digits or not (ROOT / "data/latents/manifest.json").exists():
        pytest.skip("needs the artifacts of the digits preset: dvc repro")

    steps = STEPS[stage]

    def change(tree: Any) -> None:
        tree["preset"] = "digits"
        tree[stage] |= {"steps": steps, "log_steps": 25}
        tree[stage]["optimizer"]["warmup_steps"] = 25

    monkeypatch.setenv("FLOWPRIOR_MLFLOW", "on")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workspace(tmp_path, change)
    for name in ("targets", "flow_prior", "latents"):
        shutil.copytree(ROOT / "data" / name, tmp_path / "data" / name)
    module = import_module(stage)
    spent = {"data": 0.0, "logging": 0.0}
    took: list[float] = []

    def timed(owner: Any, name: str, part: str) -> None:
        before = getattr(owner, name)

        def work(*args: Any, **values: Any) -> Any:
            clock = time.perf_counter()
            try:
                return before(*args, **values)
            finally:
                spent[part] += time.perf_counter() - clock

        monkeypatch.setattr(owner, name, work)

    if stage == "train_flow":
        timed(Column, "sample", "data")
    elif stage == "train_ae":
        timed(Ahead, "__call__", "data")
    else:
        timed(module.LabelledLatents, "draw", "data")
    timed(Session, "log", "logging")
    leave = Session.__exit__

    def left(self: Session, *error: Any) -> None:
        took.append(self.seconds)
        leave(self, *error)

    monkeypatch.setattr(Session, "__exit__", left)
    module.main(load_params(tmp_path), tmp_path)
    keep(
        f"{stage}_overhead",
        {
            "seconds": took[0] / steps,
            "data_share": spent["data"] / took[0],
            "logging_share": spent["logging"] / took[0],
        },
    )
    benchmark.pedantic(lambda: took, rounds=1)


def test_sending_to_mlflow(benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Share of the time between two sendings that one takes; the first, which imports MLflow, is apart."""
    monkeypatch.setenv("FLOWPRIOR_MLFLOW", "on")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker("benchmark", {}, tmp_path)
    tracker.start()
    took = []
    for flush in range(1 + ROUNDS):
        for step in range(POINTS // 4):
            tracker.log(flush * POINTS + step, dict.fromkeys("abcd", 0.5))
        clock = time.perf_counter()
        tracker._flush()
        took.append(time.perf_counter() - clock)
    seconds = statistics.median(took[1:])
    keep(
        "mlflow",
        {
            "seconds": seconds,
            "points": POINTS,
            "share": seconds / FLUSH_SECONDS,
            "first_seconds": took[0],
        },
    )
    benchmark.pedantic(lambda: took, rounds=1)
