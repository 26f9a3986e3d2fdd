"""What decides whether a result is old: versions and parameters, not code."""

from pathlib import Path
from typing import Any

import pytest

from flowprior.config import schema, versions
from flowprior.config.schema import STAGES
from flowprior.config.versions import NEUTRAL, VERSIONS, without_neutral

from .committed import params


def test_every_stage_has_a_version() -> None:
    assert list(VERSIONS) == list(STAGES)
    assert all(version >= 1 for version in VERSIONS.values())


def test_the_shipped_parameters_leave_every_added_one_neutral(root: Path) -> None:
    """Else results from before it was added would be older all at once."""
    plain = params(root).model_dump(mode="json")
    for key, value in NEUTRAL.items():
        section, name = key.split(".")
        assert plain[section][name] == value, key


def test_parameters_at_their_neutral_value_are_left_out() -> None:
    config = {"seed": 0, "align": {"weight": 0.1, "options": {}}, "generator": {"options": {}}}
    assert without_neutral(config) == {"seed": 0, "align": {"weight": 0.1}}


def test_another_value_than_the_neutral_one_stays() -> None:
    config = {"align": {"options": {"power": 2}}, "generator": {"model": "own", "options": {}}}
    assert without_neutral(config) == {
        "align": {"options": {"power": 2}},
        "generator": {"model": "own"},
    }


@pytest.mark.parametrize("value", [0, None, False, "", []])
def test_a_value_that_is_merely_empty_is_not_neutral(value: Any) -> None:
    config = {"align": {"options": value, "weight": value}}
    assert without_neutral(config) == config


@pytest.mark.parametrize("stage", STAGES)
def test_a_new_parameter_at_its_neutral_value_changes_no_behaviour(
    root: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    before = params(root).behaviour(stage)
    tracked = schema.Params.tracked

    def with_a_new_one(self: schema.Params, name: str) -> dict[str, Any]:
        found = tracked(self, name)
        return {**found, "prior": {**found.get("prior", {}), "temperature": 1.0}}

    monkeypatch.setattr(schema.Params, "tracked", with_a_new_one)
    assert params(root).behaviour(stage) != before
    monkeypatch.setitem(versions.NEUTRAL, "prior.temperature", 1.0)
    assert params(root).behaviour(stage) == before


def test_a_raised_version_is_another_behaviour_of_that_stage_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = params(root)
    before = {stage: cfg.behaviour(stage) for stage in STAGES}
    monkeypatch.setitem(versions.VERSIONS, "train_mar", 2)
    assert [stage for stage in STAGES if cfg.behaviour(stage) != before[stage]] == ["train_mar"]


def test_a_plugins_code_is_part_of_the_behaviour_of_the_stages_that_name_it(root: Path) -> None:
    file = root / "plugins/alignment/own.py"
    file.parent.mkdir(parents=True)
    file.write_text("class Own: ...\n")
    cfg = params(root, align__objective="plugins.alignment.own:Own")
    before = {stage: cfg.behaviour(stage) for stage in STAGES}
    file.write_text("class Own: ...  # edited\n")
    assert [stage for stage in STAGES if cfg.behaviour(stage) != before[stage]] == ["train_ae"]
