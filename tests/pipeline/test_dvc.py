"""dvc.yaml says what the stages really read, and what their parameters really are."""

import ast
import hashlib
import json
from pathlib import Path

import pytest
import yaml

import summary
from flowprior.config import params

from .closure import ROOT, closure

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
STAGES = {name: facts for name, facts in PIPELINE["stages"].items() if name != "summary"}
SUMMARY = PIPELINE["stages"]["summary"]


def _paths(entries: list) -> set[str]:
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


@pytest.mark.parametrize("stage", STAGES)
def test_deps_equal_the_import_closure(stage: str) -> None:
    code = {path for path in STAGES[stage]["deps"] if not path.startswith("data/")}
    assert sorted(code) == closure(ROOT / f"stages/{stage}.py")


@pytest.mark.parametrize("stage", STAGES)
def test_tracked_parameters_equal_what_the_stage_resolves(stage: str) -> None:
    scale = [f"presets.${{preset}}.{name}" for name in params.SCALE[stage]]
    assert STAGES[stage]["params"] == [*params.SCIENCE[stage], *scale]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_no_parameter_that_is_not_tracked(stage: str) -> None:
    source = (ROOT / f"stages/{stage}.py").read_text(encoding="utf-8")
    for name in params.Params.model_fields:
        if name not in ("preset", "presets", *params.SCIENCE[stage]):
            assert f"cfg.{name}." not in source
    for name in params.Preset.model_fields:
        if name not in params.SCALE[stage]:
            assert f"cfg.scale.{name}" not in source


def test_a_stage_that_opens_images_tracks_their_parameters() -> None:
    for stage in STAGES:
        source = (ROOT / f"stages/{stage}.py").read_text(encoding="utf-8")
        if "cfg.image_source" in source:
            assert "images" in params.SCIENCE[stage]
            assert "images" in params.SCALE[stage]


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_takes_the_launcher_and_the_workspaces_code(stage: str) -> None:
    assert STAGES[stage]["cmd"] == rf"PYTHONPATH=src \${{LAUNCH:-python}} stages/{stage}.py"


def test_every_input_is_made_by_an_earlier_stage() -> None:
    made: set[str] = set()
    for facts in STAGES.values():
        assert {path for path in facts["deps"] if path.startswith("data/")} <= made
        made |= _paths(facts["outs"])


def test_an_edit_of_the_generator_reruns_nothing_before_it() -> None:
    mar = "src/flowprior/mar/model.py"
    assert [stage for stage in STAGES if mar in STAGES[stage]["deps"]] == [
        "train_mar",
        "sample_eval",
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_figures_are_in_git_and_named_like_the_stage(stage: str) -> None:
    """DVC's metrics are the summary's alone, so that its tables are short."""
    assert {f"metrics/{stage}.json": {"cache": False}} in STAGES[stage]["plots"]
    assert "metrics" not in STAGES[stage]
    assert SUMMARY["metrics"] == [{"metrics/summary.json": {"cache": False}}]


def test_the_summary_is_made_of_all_stages() -> None:
    code = {path for path in SUMMARY["deps"] if not path.startswith("metrics/")}
    assert sorted(code) == closure(ROOT / "stages/summary.py")
    assert set(SUMMARY["deps"]) - code == {f"metrics/{stage}.json" for stage in STAGES}
    assert list(params.SCIENCE) == list(STAGES)


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


def test_the_committed_lock_was_made_by_this_code_and_these_parameters() -> None:
    """What the committed metrics were measured with is what stands here."""
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    tree = params.load_params().model_dump(mode="json")
    for stage, facts in lock.items():
        for dep in facts["deps"]:
            path = ROOT / dep["path"]
            if path.is_file():
                assert hashlib.md5(path.read_bytes()).hexdigest() == dep["md5"], (stage, path)
        for key, value in facts.get("params", {}).get("params.yaml", {}).items():
            node = tree
            for part in key.split("."):
                node = node[part]
            assert node == value, (stage, key)
