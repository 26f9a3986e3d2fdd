"""Facts go to git, costs beside them, both to MLflow."""

from pathlib import Path
from typing import Any

import pytest

from flowprior.core.io import read_json
from flowprior.ops.outcome import record
from flowprior.ops.tracking import Tracker

FACTS = {"loss": 0.25, "num_images": 7, "lpips": None, "extractor": "digits", "seed": 0}


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the tracker is asked to send."""
    calls: list[tuple[Any, ...]] = []

    def finish(
        self: Tracker,
        metrics: dict[str, Any],
        artifacts: Any = (),
        status: str = "FINISHED",
        headline: Any = (),
    ) -> None:
        calls.append((metrics, list(artifacts), status, list(headline)))

    monkeypatch.setattr(Tracker, "finish", finish)
    return calls


def recorded(root: Path, seconds: float = 2.0, **options: Any) -> dict[str, Any]:
    """Metrics as they are after a stage."""
    record(root, "train_toy", FACTS, Tracker("train_toy", {}, root), seconds, **options)
    return dict(read_json(root / "metrics/train_toy.json"))


def test_the_metrics_of_a_stage_hold_its_facts_and_no_cost(
    tmp_path: Path, finished: list[tuple[Any, ...]]
) -> None:
    """So that the file is the same after every run."""
    assert recorded(tmp_path, images_per_second=5.0, began_at="abc") == FACTS
    text = (tmp_path / "metrics/train_toy.json").read_bytes()
    recorded(tmp_path, seconds=99.0, images_per_second=1.0)
    assert (tmp_path / "metrics/train_toy.json").read_bytes() == text


def test_costs_have_a_file_of_their_own(tmp_path: Path, finished: list[tuple[Any, ...]]) -> None:
    recorded(tmp_path, images_per_second=5.0, began_at="abc")
    costs = read_json(tmp_path / "metrics/costs/train_toy.json")
    assert (costs["seconds"], costs["images_per_second"]) == (2.0, 5.0)
    assert costs["began_at"] == "abc"
    assert not set(costs) & set(FACTS)


def test_mlflow_gets_facts_and_costs_figures_and_headline(
    tmp_path: Path, finished: list[tuple[Any, ...]]
) -> None:
    recorded(
        tmp_path, images_per_second=5.0, figures=[tmp_path / "a.png"], headline=["loss", "fid"]
    )
    ((metrics, artifacts, status, headline),) = finished
    assert FACTS.items() <= metrics.items()
    assert metrics["seconds"] == 2.0
    assert metrics["images_per_second"] == 5.0
    assert "machine" not in metrics
    assert (artifacts, status, headline) == ([tmp_path / "a.png"], "FINISHED", ["loss", "fid"])


def test_a_fact_that_is_no_number_is_refused_before_anything_is_tracked(
    tmp_path: Path, finished: list[tuple[Any, ...]]
) -> None:
    """NaN is not JSON; a stage that gave one has not ended well."""
    with pytest.raises(ValueError, match="JSON compliant"):
        record(tmp_path, "train_toy", {"loss": float("nan")}, Tracker("t", {}, tmp_path), 1.0)
    assert finished == []
