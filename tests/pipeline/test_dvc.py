"""dvc.yaml says what the stages really read, and what their parameters really are."""

import ast
import json
from pathlib import Path

import pytest
import yaml

import summary
from flowprior.config.schema import STAGES as SECTIONS
from flowprior.config.schema import Params
from flowprior.config.yaml12 import read_yaml
from flowprior.images.names import DIGITS_PATH

from .closure import ROOT, plugin_rooms, rooms
from .workspace import read_committed

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
STAGES = {name: facts for name, facts in PIPELINE["stages"].items() if name != "summary"}
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
IMAGES = "${images.path}"
OF_IMAGES = ("extract_features",)
"""Stages that open images through a room."""
SUMMARY = PIPELINE["stages"]["summary"]


def _paths(entries: list) -> set[str]:
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_rooms_that_a_stage_imports_and_may_load_from(stage: str) -> None:
    script = f"stages/{stage}.py"
    wanted = {script, *(f"src/flowprior/{room}" for room in rooms(ROOT / script))}
    wanted |= {f"plugins/{room}" for room in plugin_rooms(ROOT / script)}
    others = {path for path in STAGES[stage]["deps"] if not path.startswith(("data/", "$"))}
    assert others == wanted


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_watches_the_images_of_the_stages_that_read_them(stage: str) -> None:
    """And of the committed parameters a folder that is in git and never changes."""
    source = (ROOT / f"stages/{stage}.py").read_text(encoding="utf-8")
    assert (IMAGES in STAGES[stage]["deps"]) == ("cfg.image_source" in source or stage in OF_IMAGES)
    committed = read_yaml(ROOT / "params.yaml")["images"]["path"]
    assert committed == DIGITS_PATH
    assert [path.name for path in (ROOT / committed).iterdir()] == ["README.md"]


def test_every_room_of_plugins_is_there_for_dvc_to_look_at() -> None:
    for stage in STAGES:
        for path in STAGES[stage]["deps"]:
            assert not path.startswith("plugins/") or any((ROOT / path).iterdir()), path


@pytest.mark.parametrize("stage", STAGES)
def test_tracked_parameters_equal_what_the_stage_resolves(stage: str) -> None:
    """Of params.yaml all its sections, of the chosen preset those that it has."""
    in_presets = {name for path in PRESETS for name in read_yaml(path)}
    scale = [name for name in SECTIONS[stage] if name in in_presets]
    *ours, theirs = STAGES[stage]["params"]
    assert ours == list(SECTIONS[stage])
    assert theirs == {"presets/${preset}.yaml": scale}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_no_parameter_that_is_not_tracked(stage: str) -> None:
    source = (ROOT / f"stages/{stage}.py").read_text(encoding="utf-8")
    for name in Params.model_fields:
        if name not in ("preset", *SECTIONS[stage]):
            assert f"cfg.{name}" not in source
    if "cfg.image_source" in source:
        assert "images" in SECTIONS[stage]


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_takes_the_launcher_and_the_workspaces_code(stage: str) -> None:
    assert STAGES[stage]["cmd"] == rf"PYTHONPATH=src \${{LAUNCH:-python}} stages/{stage}.py"


def test_every_input_is_made_by_an_earlier_stage() -> None:
    made: set[str] = set()
    for facts in STAGES.values():
        assert {path for path in facts["deps"] if path.startswith("data/")} <= made
        made |= _paths(facts["outs"])


def test_an_edit_of_the_generator_reruns_nothing_before_it() -> None:
    of_mar = [stage for stage in STAGES if "src/flowprior/mar" in STAGES[stage]["deps"]]
    assert of_mar == ["train_mar", "sample_eval"]


@pytest.mark.parametrize("stage", STAGES)
def test_figures_are_in_git_and_named_like_the_stage(stage: str) -> None:
    """DVC's metrics are the summary's alone, so that its tables are short."""
    assert {f"metrics/{stage}.json": {"cache": False}} in STAGES[stage]["plots"]
    assert "metrics" not in STAGES[stage]
    assert SUMMARY["metrics"] == [{"metrics/summary.json": {"cache": False}}]


def test_the_summary_is_made_of_all_stages() -> None:
    metrics = {f"metrics/{stage}.json" for stage in STAGES}
    assert set(SUMMARY["deps"]) == {"stages/summary.py", *metrics}
    assert list(SECTIONS) == list(STAGES)


def test_the_summary_has_what_there_is_under_its_short_name() -> None:
    """Of digits: no FID; whole numbers stay so."""
    shown = summary.summary(ROOT)
    assert set(summary.SHOWN) - set(shown) == {"rfid", "fid", "fid_guided"}
    sample_eval = json.loads((ROOT / "metrics/sample_eval.json").read_text())
    assert shown["agreement"] == pytest.approx(sample_eval["label_agreement"], rel=1e-4)
    assert json.loads((ROOT / "metrics/summary.json").read_text()) == shown


@pytest.mark.parametrize("stage", ["train_ae", "encode_latents", "sample_eval"])
def test_an_experiments_headline_is_in_the_summary(stage: str) -> None:
    """What MLflow shows of an experiment, DVC shows."""
    source = ast.parse((ROOT / f"stages/{stage}.py").read_text(encoding="utf-8"))
    (headline,) = (
        ast.literal_eval(node.value)
        for node in source.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HEADLINE"
    )
    shown = {metric.split(".")[1] for metric in summary.SHOWN.values()}
    assert set(headline) - {"held_out_alignment_loss"} <= shown


def test_plots_are_outputs_of_a_stage() -> None:
    made = {path for facts in STAGES.values() for path in _paths(facts["plots"])}
    for plot in PIPELINE["plots"]:
        (facts,) = plot.values()
        assert set(facts["y"]) <= made


@pytest.mark.parametrize("path", ["dvc.yaml", "stages/toy/dvc.yaml"])
def test_every_stage_can_come_from_the_run_cache(path: str) -> None:
    """DVC turns it off for a stage with an output that is not in its cache, unless that is a plot or a metric."""
    stages = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))["stages"]
    for facts in stages.values():
        assert all(isinstance(out, str) for out in facts.get("outs", []))


def test_analytics_are_off() -> None:
    assert "analytics = false" in (ROOT / ".dvc/config").read_text(encoding="utf-8")
    assert Path(ROOT / ".dvcignore").is_file()


def test_the_committed_lock_was_made_by_these_parameters() -> None:
    """What the committed metrics were measured with is what stands here."""
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    trees = {name: read_committed(name) for name in ("params.yaml", "presets/digits.yaml")}
    for stage, facts in lock.items():
        for file, values in facts.get("params", {}).items():
            for key, value in values.items():
                node = trees[file]
                for part in key.split("."):
                    node = node[part]
                assert node == value, (stage, key)


def test_all_files_are_short() -> None:
    for name, most in (("dvc.yaml", 170), ("params.yaml", 100)):
        assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= most
