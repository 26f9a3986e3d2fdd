"""Results: what a file holds, and what makes it old."""

import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowprior.config.schema import STAGES
from flowprior.config.versions import NEUTRAL, VERSIONS
from flowprior.core.io import ArtifactError, write_json
from flowprior.experiments import planned, results
from flowprior.experiments.planned import Experiment, experiment
from flowprior.experiments.results import Result, outdated_stages

from ..images.sources import write_tree
from .conftest import ROOT


def result_of(one: Experiment, **changes: Any) -> Result:
    """What an experiment would give now."""
    plain = Result(
        name=one.name,
        preset=one.preset,
        seed=one.seed,
        settings=one.settings,
        params=one.params,
        versions=dict(VERSIONS),
        plugins=one.plugins,
        commit="0123456789abcdef0123456789abcdef01234567",
        machine={"cpu": "x", "threads": 1},
        ran=["train_ae"],
        resumed={},
        metrics={"encode_latents.psnr_db": 20.0},
        costs={"train_ae.seconds": 3.5},
        curves={"alignment": {"step": [1.0, 2.0]}},
        sheets={"samples": b"\x89PNG"},
    )
    return plain._replace(**changes)


@pytest.fixture(scope="module")
def plain() -> Experiment:
    """An experiment of this repository as it is."""
    return experiment("semantic-s0", ["preset=smoke", "seed=0"], ROOT)


def without(params: Any, key: str) -> dict[str, Any]:
    """Parameters by stage, without a key `section.name`; a section that is left empty goes as well."""
    section, _, name = key.partition(".")
    copy = json.loads(json.dumps(params))
    for sections in copy.values():
        sections.get(section, {}).pop(name, None)
        if sections.get(section) == {}:
            del sections[section]
    return copy


def with_value(params: Any, key: str, value: object) -> dict[str, Any]:
    """Parameters by stage with a value at `section.name`, wherever there is such a section."""
    section, _, name = key.partition(".")
    copy = json.loads(json.dumps(params))
    for sections in copy.values():
        if section in sections:
            sections[section][name] = value
    return copy


# --- files ------------------------------------------------------------------------------------------


def test_a_result_is_read_as_it_was_written(tmp_path: Path, plain: Experiment) -> None:
    """Under the name of the experiment."""
    one = result_of(plain)
    path = results.save(tmp_path, one)
    assert path == tmp_path / "metrics/experiments/semantic-s0.json"
    assert results.load(path) == one
    assert results.load_all(tmp_path) == {"semantic-s0": one}
    assert outdated_stages(results.load(path), plain) == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda kept: kept | {"schema": 1}, "is no result: expected schema 2, found 1"),
        (lambda kept: {k: v for k, v in kept.items() if k != "versions"}, "lacks versions"),
        (lambda kept: kept | {"name": "kl-s0"}, "holds the result of kl-s0; rename it"),
        (lambda kept: kept | {"sheets": {"samples": "?"}}, "is damaged"),
        (lambda kept: kept | {"sheets": None}, "is damaged"),
        (lambda kept: [kept], "is no result"),
    ],
)
def test_a_spoiled_result_is_told(
    tmp_path: Path,
    plain: Experiment,
    spoil: Callable[[dict[str, Any]], Any],
    said: str,
) -> None:
    path = results.save(tmp_path, result_of(plain))
    write_json(path, spoil(json.loads(path.read_text())))
    with pytest.raises(ArtifactError, match=re.escape(said)):
        results.load_all(tmp_path)
    path.write_text("{")
    with pytest.raises(ArtifactError, match="not JSON"):
        results.load_all(tmp_path)


def test_committed_results_can_be_read() -> None:
    """Under names that people read, with facts and costs apart, and no hash that stands for parameters."""
    there = results.load_all(ROOT)
    assert there
    for name, one in there.items():
        assert re.fullmatch(r"\w[\w.-]*-s\d+", name)
        assert not [key for key in one.metrics if key.endswith(("seconds", "_per_second", "_mib"))]
        assert {key.split(".")[0] for key in one.costs} <= set(one.ran)
        assert set(one.params) == set(one.versions) == set(STAGES)


# --- what is old ------------------------------------------------------------------------------------


def test_stages_are_a_chain() -> None:
    """Each reads what the one before wrote, so that all that follow an outdated stage are outdated."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for before, after in itertools.pairwise(STAGES):
        outs = [out if isinstance(out, str) else next(iter(out)) for out in stages[before]["outs"]]
        assert set(outs) & set(stages[after]["deps"]), (before, after)


@pytest.mark.parametrize("stage", STAGES)
def test_a_raised_version_makes_that_stage_old_and_what_follows(
    plain: Experiment, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setitem(VERSIONS, stage, VERSIONS[stage] + 1)
    old = result_of(plain, versions=VERSIONS | {stage: VERSIONS[stage] - 1})
    assert outdated_stages(old, plain) == list(STAGES)[list(STAGES).index(stage) :]
    assert outdated_stages(result_of(plain), plain) == []


@pytest.mark.parametrize(
    ("setting", "first"),
    [
        ("prior.source=textual", "extract_features"),
        ("seed=1", "extract_features"),
        ("project.operator=pca", "project"),
        ("train_flow.optimizer.lr=0.001", "train_flow"),
        ("align.weight=0.5", "train_ae"),
        ("train_mar.mask_ratio_low=0.1", "train_mar"),
        ("guidance.scale=1.5", "sample_eval"),
    ],
)
def test_a_changed_parameter_makes_the_stages_old_that_use_it(
    plain: Experiment, setting: str, first: str
) -> None:
    """And those that follow."""
    changed = experiment(plain.name, [*plain.settings, setting], ROOT)
    assert outdated_stages(result_of(plain), changed) == list(STAGES)[list(STAGES).index(first) :]


@pytest.mark.parametrize("key", NEUTRAL)
def test_a_parameter_that_a_result_lacks_counts_as_its_neutral_value(
    plain: Experiment, key: str
) -> None:
    """For results that are older than the parameter; another value makes them old."""
    older = result_of(plain, params=without(plain.params, key))
    neutral = plain._replace(params=with_value(plain.params, key, NEUTRAL[key]))
    assert outdated_stages(older, neutral) == []
    other = plain._replace(params=with_value(plain.params, key, "something else"))
    assert outdated_stages(older, other) != []


def test_a_parameter_that_is_new_and_has_no_neutral_value_makes_results_old(
    plain: Experiment,
) -> None:
    newer = plain._replace(params=with_value(plain.params, "train_mar.width_of_beam", 1))
    assert outdated_stages(result_of(plain), newer) == ["train_mar", "sample_eval"]


def test_a_new_parameter_at_its_neutral_value_makes_nothing_old(
    plain: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NEUTRAL, "train_mar.width_of_beam", 1)
    newer = plain._replace(params=with_value(plain.params, "train_mar.width_of_beam", 1))
    assert outdated_stages(result_of(plain), newer) == []


def test_an_edited_plugin_makes_the_stages_old_that_name_it(repository: Path) -> None:
    file = repository / "plugins/alignment/mine.py"
    file.parent.mkdir(parents=True)
    file.write_text("class Pull:\n    pass\n")
    settings = ["preset=smoke", "align.objective=plugins.alignment.mine:Pull"]
    one = experiment("mine-s0", settings, repository)
    made = result_of(one)
    file.write_text("class Pull:\n    strength = 2\n")
    edited = experiment("mine-s0", settings, repository)
    assert outdated_stages(made, edited) == list(STAGES)[3:]
    assert outdated_stages(made, one) == []


def test_other_images_make_a_result_old(plain: Experiment, tmp_path: Path) -> None:
    """Wherever they lie; the digits never change, and of images that are not here nothing is known."""
    write_tree(tmp_path / "one", ["a", "b"], 10)
    settings = [
        "preset=smoke",
        "images.source=imagefolder",
        "evaluation.judge=none",
        "prior.source=gaussian",
    ]

    def of(folder: str) -> Experiment:
        planned._images_of.cache_clear()
        return experiment("own-s0", [*settings, f"images.path={tmp_path / folder}"], ROOT)

    first = of("one")
    assert first.images
    made = result_of(first, metrics={"encode_latents.images_digest": first.images})
    assert outdated_stages(made, first) == []
    shutil.move(tmp_path / "one", tmp_path / "two")
    assert outdated_stages(made, of("two")) == []
    (tmp_path / "two/a/000.png").rename(tmp_path / "two/b/900.png")
    assert outdated_stages(made, of("two")) == list(STAGES)
    assert outdated_stages(made, of("none")) == []
    assert plain.images == ""
