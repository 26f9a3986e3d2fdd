"""What reaches MLflow, and that training does not care whether it does."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
from mlflow import MlflowClient

from flowprior.cli.app import main
from flowprior.core.io import digest
from flowprior.ops.machine import machine
from flowprior.ops.tracking import BATCH, EXPERIMENT, KEPT, Tracker, flatten

CONFIG = {"seed": 0, "scale": {"width": 3, "optimizer": {"lr": 1e-3}}, "guidance": None}
STAGE = "train_toy"
MANY = 2 * BATCH + 1
"""Points of one curve: more than two batches hold."""


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Variables as nobody set them, whatever a tracker sets is undone, and relative paths end in a scratch folder."""
    with mock.patch.dict(os.environ):
        plain()
        monkeypatch.chdir(tmp_path)
        yield


def plain() -> None:
    """Remove what decides where to track; MLflow's telemetry is off."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "FLOWPRIOR_", "DVC_EXP_")):
            del os.environ[name]
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


def tracker(root: Path, **changes: Any) -> Tracker:
    """A tracker of the tests."""
    return Tracker(**{"stage": STAGE, "config": CONFIG, "root": root} | changes)


class Tracked(NamedTuple):
    """A store with one run that was interrupted and resumed."""

    uri: str
    client: Any
    run_id: str
    runs: list[Any]
    parents: list[Any]
    errors: str


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    """One database for all tests of this file, because creating it takes seconds; nothing is changed in it.

    A process logs and is interrupted; a second one of the same stage goes on with the run and ends it; a third
    one, of another configuration and experiment, begins a run of its own.
    """
    root = tmp_path_factory.mktemp("tracked")
    uri = f"sqlite:///{root / 'elsewhere.db'}"
    errors = io.StringIO()
    with mock.patch.dict(os.environ), chdir(root), redirect_stderr(errors):
        plain()
        os.environ["MLFLOW_TRACKING_URI"] = uri
        first = tracker(root)
        first.start(root / "tracking.json")
        for step in range(MANY):
            first.log(step, {"train/loss": 1 / (step + 1)})
        first.finish({}, status="KILLED")

        second = tracker(root)
        second.start(root / "tracking.json")
        second.log(MANY, {"train/loss": 0.5, "train/grad_norm": 2.0})
        (root / "figure.png").write_bytes(b"a figure")
        metrics = {"loss": 0.25, "count": 3, "good": True, "nothing": None, "name": "x"}
        second.finish(metrics, [root / "figure.png"])

        os.environ["DVC_EXP_NAME"] = "heavy-tail"
        third = tracker(root, stage="project", config={"seed": 1})
        third.start(root / "other.json")
        third.finish({"std": 1.0, "mean": 0.0}, headline=["std", "fid"])
        fourth = tracker(root, stage="train_flow", config={"seed": 1, "train_flow": {"width": 8}})
        fourth.start(root / "another.json")
        for step in range(3):
            fourth.log(step, {"loss": 1.0})
        fourth.finish({"loss": 0.5}, headline=["loss"])
        tracker(root, stage="project", config={"seed": 2}).finish({"std": 2.0})

        client = second._client
        experiment = client.get_experiment_by_name(EXPERIMENT)
        runs, parents = (
            client.search_runs(
                [experiment.experiment_id], f"tags.kind = '{kind}'", order_by=["start_time ASC"]
            )
            for kind in ("stage", "experiment")
        )
    run_id = json.loads((root / "tracking.json").read_text())["run_id"]
    return Tracked(uri, client, run_id, runs, parents, errors.getvalue())


# --- what is tracked --------------------------------------------------------------------------------


def test_a_resumed_stage_goes_on_in_its_run(tracked: Tracked) -> None:
    """Two processes, one run; the other configuration has its own. Nothing went wrong on the way."""
    assert tracked.errors == ""
    assert len(tracked.runs) == 4
    assert tracked.runs[0].info.run_id == tracked.run_id
    assert tracked.runs[0].info.status == "FINISHED"


def test_every_point_of_a_curve_arrives_once_with_its_step(tracked: Tracked) -> None:
    """Those of both processes, more than one batch holds, with their exact values."""
    history = tracked.client.get_metric_history(tracked.run_id, "train/loss")
    found = {point.step: point.value for point in history}
    assert len(history) == len(found) == MANY + 1
    assert found == {step: 1 / (step + 1) for step in range(MANY)} | {MANY: 0.5}


def test_the_metrics_of_a_stage_are_the_numbers_among_them(tracked: Tracked) -> None:
    """Not truth values, nothing, or text."""
    metrics = tracked.runs[0].data.metrics
    assert metrics == {"train/loss": 0.5, "train/grad_norm": 2.0, "loss": 0.25, "count": 3.0}


def test_parameters_are_flat_with_dotted_keys(tracked: Tracked) -> None:
    """All of the resolved configuration."""
    assert tracked.runs[0].data.params == {
        "seed": "0",
        "scale.width": "3",
        "scale.optimizer.lr": "0.001",
        "guidance": "None",
    }


def test_tags_say_stage_experiment_and_configuration(tracked: Tracked) -> None:
    """DVC's name of the experiment where there is one, and a name to read in the list of runs."""
    own, other, *_ = (run.data.tags for run in tracked.runs)
    assert own["stage"] == STAGE
    assert own["experiment"] == "workspace"
    assert own["config"] == digest(CONFIG)[:12]
    assert own["mlflow.runName"] == "train_toy/workspace"
    assert other["experiment"] == "heavy-tail"
    assert other["mlflow.runName"] == "project/heavy-tail"
    assert other["config"] != own["config"]


def test_tags_say_what_the_run_was_made_on(tracked: Tracked) -> None:
    """Another processor or number of threads gives other results."""
    tags = tracked.runs[0].data.tags
    assert {name: tags[name] for name in machine()} == {k: str(v) for k, v in machine().items()}


def test_the_stages_of_an_experiment_have_a_parent_with_its_headline(tracked: Tracked) -> None:
    """One for each set of parameters, those of all its stages; without a curve's points. The workspace has none."""
    first, second = tracked.parents
    workspace, project, flow, other = (
        run.data.tags.get("mlflow.parentRunId") for run in tracked.runs
    )
    assert workspace is None
    assert project == flow == first.info.run_id
    assert other == second.info.run_id
    assert first.data.tags["mlflow.runName"] == first.data.tags["experiment"] == "heavy-tail"
    assert first.data.metrics == {"std": 1.0, "loss": 0.5}
    assert first.data.params == {"seed": "1", "train_flow.width": "8"}
    assert first.info.status == second.info.status == "FINISHED"
    assert second.data.params == {"seed": "2"}
    assert second.data.metrics == {}
    history = tracked.client.get_metric_history(first.info.run_id, "loss")
    assert [point.value for point in history] == [0.5]


def test_figures_are_artifacts_of_the_run(tracked: Tracked, tmp_path: Path) -> None:
    """Byte by byte."""
    names = [item.path for item in tracked.client.list_artifacts(tracked.run_id)]
    assert names == ["figure.png"]
    path = tracked.client.download_artifacts(tracked.run_id, "figure.png", str(tmp_path))
    assert Path(path).read_bytes() == b"a figure"


def test_without_a_server_the_store_is_in_the_root(tracked: Tracked, tmp_path: Path) -> None:
    """Database and artifacts; a run that is remembered but not in the store is begun anew, and remembered."""
    root = tmp_path / "a root"
    root.mkdir()
    shutil.copy(tracked.uri.removeprefix("sqlite:///"), root / "mlflow.db")
    memory = root / "tracking.json"
    memory.write_text('{"run_id": "0123"}')
    one = tracker(root)
    one.start(memory)
    one.finish({"loss": 1.0})
    run = one._client.get_run(json.loads(memory.read_text())["run_id"])
    assert run.data.metrics == {"loss": 1.0}
    assert run.info.status == "FINISHED"
    assert not list(tmp_path.glob("*.db"))


def test_any_number_of_parameters_of_any_length_is_tracked(
    tracked: Tracked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """More than one batch holds (a hundred), and as long as a list of all layers may be."""
    shutil.copy(tracked.uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    config = {f"p{i}": i for i in range(250)} | {"layers": list(range(1000))}
    one = tracker(tmp_path, config=config)
    one.start()
    one.finish({"loss": 1.0})
    assert capsys.readouterr().err == ""
    params = one._client.get_run(one._run_id).data.params
    assert params == {name: str(value) for name, value in config.items()}


# --- where it does not work -------------------------------------------------------------------------


def closed_port() -> int:
    """A port of this machine where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_a_server_that_is_down_is_told_once_and_asked_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage goes on without tracking, and where its metrics are is said."""
    os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{closed_port()}"
    one = tracker(tmp_path)
    one.start(tmp_path / "tracking.json")
    one._last_flush -= 100  # as if the last flush were long ago
    one.log(0, {"loss": 1.0})
    said = capsys.readouterr().err
    assert said.startswith("train_toy: MLflow cannot be reached (")
    assert said.endswith("`python -m flowprior sync` sends it later\n")
    assert said.count("cannot be reached") == 1
    # One retry with its pause; MLflow's own default is seven, for minutes.
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    monkeypatch.setattr(one, "_connect", lambda: pytest.fail("the server was asked again"))
    one._last_flush -= 100
    one.log(1, {"loss": 1.0})
    one.finish({"loss": 1.0}, [tmp_path / "figure.png"])
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "tracking.json").exists()


def kept(root: Path) -> list[Any]:
    """What waits to be sent."""
    return [json.loads(file.read_text()) for file in sorted((root / KEPT).glob("*.json"))]


def test_what_was_not_sent_is_sent_later(
    tracked: Tracked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Points with their steps and times, parameters, tags, figures, the end; and only once."""
    os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{closed_port()}"
    os.environ["DVC_EXP_NAME"] = "lost-night"
    one = tracker(tmp_path)
    one.start(tmp_path / "tracking.json")
    for step in range(3):
        one.log(step, {"train/loss": 1 / (step + 1)})
    (tmp_path / "figure.png").write_bytes(b"a figure")
    one.finish({"psnr_db": 24.0}, [tmp_path / "figure.png"], headline=["psnr_db"])
    (waiting,) = kept(tmp_path)
    times = [point[2] for point in waiting["points"]]
    del os.environ["DVC_EXP_NAME"]
    with pytest.raises(SystemExit):
        main(["sync", "--root", str(tmp_path)])
    assert kept(tmp_path) == [waiting]
    assert "where it stays" in capsys.readouterr().err

    shutil.copy(tracked.uri.removeprefix("sqlite:///"), tmp_path / "back.db")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path / 'back.db'}"
    main(["sync", "--root", str(tmp_path)])
    assert capsys.readouterr().out == "1 run sent\n"
    assert kept(tmp_path) == []
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id], "tags.experiment = 'lost-night'")
    run, parent = sorted(runs, key=lambda run: run.data.tags["kind"], reverse=True)
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.metrics == {"psnr_db": 24.0}
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"train/loss": 1 / 3, "psnr_db": 24.0}
    assert run.data.params["scale.width"] == "3"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.timestamp) for point in history] == list(enumerate(times[:3]))
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["figure.png"]
    main(["sync", "--root", str(tmp_path)])
    assert capsys.readouterr().out == "0 runs sent\n"


def test_a_store_that_fails_half_way_gets_the_rest_later_in_the_same_run(tmp_path: Path) -> None:
    """No point twice: those that it took are not kept."""
    one = tracker(tmp_path)
    one.start()
    one._run_id, one._client = "1", mock.Mock()
    one._client.log_batch.side_effect = [None, ConnectionError("gone")]
    for step in range(MANY):
        one.log(step, {"loss": 1.0})
    one.finish({})
    (waiting,) = kept(tmp_path)
    assert waiting["run_id"] == "1"
    assert [point[3] for point in waiting["points"]] == list(range(BATCH, MANY))


def test_a_database_that_is_read_only_does_not_stop_a_stage(
    tracked: Tracked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(tracked.uri.removeprefix("sqlite:///"), tmp_path / "locked.db")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///file:{tmp_path / 'locked.db'}?mode=ro&uri=true"
    one = tracker(tmp_path)
    one.start()
    one.finish({"loss": 1.0})
    said = capsys.readouterr().err
    assert "readonly database" in said
    assert said.count("cannot be reached") == 1
    assert len(kept(tmp_path)) == 1


def test_where_nothing_can_be_kept_that_is_told_and_the_stage_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".ckpt").write_text("a file where a folder should be")
    one = tracker(tmp_path)
    one.start()
    one._run_id, one._client = "1", mock.Mock()
    one._client.set_terminated.side_effect = ConnectionError("gone")
    one.finish({"loss": 1.0})
    assert "cannot be kept" in capsys.readouterr().err


@pytest.mark.slow
def test_four_processes_on_a_fresh_database_lose_no_run(tmp_path: Path) -> None:
    """Of four repositories, one database: they create it once between them, each has its run and its own figures."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom flowprior.ops.tracking import Tracker\n"
        "root, n = Path(sys.argv[1]), int(sys.argv[2])\n"
        "tracker = Tracker(f'stage{n}', {'seed': n}, root)\ntracker.start()\n"
        "for step in range(50): tracker.log(step, {'loss': n + step / 100})\n"
        "tracker.finish({'value': float(n)})\n"
    )
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "MLFLOW_TRACKING_URI": uri}
    for n in range(4):
        (tmp_path / str(n)).mkdir()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / str(n)), str(n)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(4)
    ]
    said = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * 4
    assert not any("cannot be reached" in text or "locked" in text for text in said), said
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = {run.data.tags["stage"]: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == [f"stage{n}" for n in range(4)]
    for n in range(4):
        run = runs[f"stage{n}"]
        assert run.info.status == "FINISHED"
        assert run.data.metrics == {"value": float(n), "loss": n + 0.49}
        assert len(client.get_metric_history(run.info.run_id, "loss")) == 50


@pytest.mark.parametrize("memory", [None, "{", "[]", '{"run": 1}'])
def test_a_memory_that_cannot_be_read_is_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: str | None
) -> None:
    """A new run is begun then; the store is not even asked."""
    one = tracker(tmp_path)
    file = tmp_path / "tracking.json"
    if memory is not None:
        file.write_text(memory)
    one.start(file)
    one._client = mock.Mock()
    assert one._remembered() is None
    assert not one._client.mock_calls


def test_an_artifact_that_is_missing_does_not_stop_the_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the store says, it is a line on the error stream."""
    one = tracker(tmp_path)
    one._run_id, one._client = "1", mock.Mock()
    one._client.log_artifact.side_effect = FileNotFoundError("figure.png")
    one.finish({}, [tmp_path / "figure.png"])
    assert "(FileNotFoundError: figure.png)" in capsys.readouterr().err


# --- off --------------------------------------------------------------------------------------------

USE = """
import sys
from pathlib import Path
from flowprior.ops.tracking import Tracker

tracker = Tracker("stage", {"seed": 0}, Path(sys.argv[1]), enabled=sys.argv[2] == "main")
tracker.start(Path(sys.argv[1]) / "tracking.json")
tracker.log(0, {"loss": 1.0})
if sys.argv[3] == "finish":
    tracker.finish({"loss": 1.0}, [Path("figure.png")])
print([name for name in sys.modules if name.split(".")[0] == "mlflow"])
"""


@pytest.mark.parametrize(
    ("switch", "rank", "until"),
    [("off", "main", "finish"), ("on", "another", "finish"), ("on", "main", "log")],
)
def test_mlflow_is_not_imported_before_it_is_needed(
    tmp_path: Path, switch: str, rank: str, until: str
) -> None:
    """Not where tracking is off or the rank is another than 0, and not before the first flush; no file is made."""
    found = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path), rank, until],
        env=os.environ | {"FLOWPRIOR_MLFLOW": switch, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "[]\n"
    assert found.stderr == ""
    assert not list(tmp_path.iterdir())


def test_points_are_sent_when_it_is_time_and_not_each_by_itself(tmp_path: Path) -> None:
    """A slow server costs a training loop one request every twenty seconds."""
    one = tracker(tmp_path)
    one.start()
    one._run_id, one._client = "1", mock.Mock()
    for step in range(5):
        one.log(step, {"a": 1.0, "b": 2.0})
    assert not one._client.mock_calls
    one._last_flush -= 100
    one.log(5, {"a": 1.0})
    (call,) = one._client.log_batch.mock_calls
    points = [(m.key, m.value, m.step) for m in call.kwargs["metrics"]]
    expected = [
        (name, value, step) for step in range(5) for name, value in (("a", 1.0), ("b", 2.0))
    ]
    assert points == [*expected, ("a", 1.0, 5)]
    one.log(6, {"a": 1.0})
    assert len(one._client.mock_calls) == 1


# --- flat names -------------------------------------------------------------------------------------


def test_nested_mappings_are_flattened_to_dotted_keys() -> None:
    """Leaves keep their values, lists included; an empty mapping has none."""
    tree = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}, "f": {}}}
    assert flatten(tree) == {"a": 1, "b.c": [1, 2], "b.d.e": None}
    assert flatten({}) == {}
