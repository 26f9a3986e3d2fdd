"""stages/toy/dvc.yaml says what the scripts really read."""

import hashlib

import pytest
import yaml

from ..config.committed import text_of
from ..pipeline.closure import ROOT, plugin_rooms, rooms
from .committed import study_tree

FOLDER = ROOT / "stages/toy"
STAGES = yaml.safe_load((FOLDER / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
MADE = ("data/", "metrics/")


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_script_and_the_rooms_that_it_imports(stage: str) -> None:
    script = FOLDER / f"{stage}.py"
    code = {dep for dep in STAGES[stage]["deps"] if not dep.startswith(MADE)}
    assert code == {
        f"stages/toy/{stage}.py",
        *(f"src/flowprior/{room}" for room in rooms(script)),
        *(f"plugins/{room}" for room in plugin_rooms(script)),
    }


@pytest.mark.parametrize("stage", STAGES)
def test_a_script_is_run_from_the_root_with_the_workspaces_code(stage: str) -> None:
    command = f"PYTHONPATH=src python stages/toy/{stage}.py"
    (item,) = STAGES[stage].get("matrix", {"": ""})
    assert STAGES[stage]["cmd"] == (f"{command} ${{item.{item}}}" if item else command)
    assert STAGES[stage]["wdir"] == "../.."


@pytest.mark.parametrize("stage", STAGES)
def test_a_script_is_short(stage: str) -> None:
    assert len((FOLDER / f"{stage}.py").read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("stage", STAGES)
def test_tracked_parameters_are_in_the_file(stage: str) -> None:
    ((file, keys),) = STAGES[stage]["params"][0].items()
    assert ROOT / file == FOLDER / "params.yaml"
    for key in keys:
        node = study_tree()
        for part in key.replace("${preset}", "cpu").split("."):
            node = node[part]


def test_the_matrices_are_the_lists_of_the_parameters() -> None:
    matrices = {stage: facts.get("matrix") for stage, facts in STAGES.items()}
    assert matrices == {
        "study": {"target": "${targets}"},
        "theory": {"target": "${exact}"},
        "compare": {"objective": "${objectives}"},
        "gallery": None,
    }


def test_the_committed_lock_was_made_by_this_code_and_these_parameters() -> None:
    lock = yaml.safe_load(text_of("stages/toy/dvc.lock"))["stages"]
    tree = study_tree()
    assert len(lock) == len(tree["targets"]) + len(tree["exact"]) + len(tree["objectives"]) + 1
    for stage, facts in lock.items():
        declared = {dep.replace("${item.target}", stage.rpartition("@")[2]) for dep in deps(stage)}
        assert {dep["path"] for dep in facts["deps"]} == declared, stage
        for dep in facts["deps"]:
            path = ROOT / dep["path"]
            if path.is_file():
                assert hashlib.md5(path.read_bytes()).hexdigest() == dep["md5"], (stage, path)
        for key, value in facts["params"]["stages/toy/params.yaml"].items():
            node = tree
            for part in key.split("."):
                node = node[part]
            assert node == value, (stage, key)


def deps(stage: str) -> list[str]:
    """What dvc.yaml declares for a stage of the lock."""
    declared: list[str] = STAGES[stage.partition("@")[0]]["deps"]
    return declared
