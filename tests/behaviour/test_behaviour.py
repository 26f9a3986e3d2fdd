"""A stage whose results change has a new VERSION; a pure refactoring has the old one, and the old results."""

import json

import pytest

from flowprior.alignment.names import OBJECTIVES

from .branches import RECORDED, Branch, branches, changes, observe, same

EVERYTHING = branches()


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, float]]:
    """What every branch gives now."""
    workspace = tmp_path_factory.mktemp("behaviour") / "workspace"
    return {(branch.stage, branch.name): now for branch, now in observe(workspace)}


@pytest.mark.parametrize("branch", EVERYTHING, ids=lambda b: f"{b.stage}: {b.name}")
def test_a_branch_does_what_its_version_did(
    branch: Branch, observed: dict[tuple[str, str], dict[str, float]]
) -> None:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    said = changes(recorded, branch, observed[branch.stage, branch.name])
    assert not said, said[0]


def test_every_objective_has_a_record() -> None:
    names = {branch.name for branch in EVERYTHING if branch.stage == "train_ae"}
    assert set(OBJECTIVES) <= names


def test_a_changed_number_names_the_stage_and_what_to_do() -> None:
    branch = Branch("train_ae", "dmd", {})
    recorded = {"train_ae": {"version": 1, "branches": {"dmd": {"loss": 0.5, "alignment": 1.0}}}}
    assert changes(recorded, branch, {"loss": 0.5, "alignment": 1.0001}) == []
    (said,) = changes(recorded, branch, {"loss": 0.51, "alignment": 1.0})
    assert said.startswith(
        "behaviour of train_ae changed (branch 'dmd'; 1 of 2 numbers, first loss"
    )
    assert "raise its VERSION" in said
    (said,) = changes({"train_ae": {"version": 0, "branches": {}}}, branch, {})
    assert "of version 0, the code's is 1" in said
    assert not same(1.0, None)
