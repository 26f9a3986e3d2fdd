"""The tables file, and the experiments that its rows stand for."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides

from flowprior.config.messages import ParamsError
from flowprior.config.presets import resolve
from flowprior.config.schema import STAGES
from flowprior.config.yaml12 import read_yaml
from flowprior.experiments.planned import (
    dvc_overrides,
    entries,
    experiment,
    experiments,
)
from flowprior.experiments.tables_file import read_tables_file

from .conftest import ROOT, planned, write_tables


def test_the_committed_file_has_the_rows_of_the_papers_tables() -> None:
    """And those of reviewers: controls, a weight of 1, other objectives."""
    tables = read_tables_file(ROOT / "tables.yaml")
    assert tables.preset == "digits"
    assert len(tables.seeds) >= 3
    assert list(tables.tables["priors"].rows) == [
        *("ae", "kl", "softvq", "low_level", "semantic", "discrete", "textual"),
        *("gaussian", "shuffled"),
    ]
    weights = [row.split("=")[1] for row in tables.tables["weights"].rows.values()]
    assert [float(weight) for weight in weights] == [0.001, 0.005, 0.01, 0.05, 1.0]
    assert len(experiments(entries(tables, ROOT))) == 24 * len(tables.seeds)


def test_what_a_table_sets_goes_for_its_rows(repository: Path) -> None:
    """A row may set it otherwise."""
    tables = {"one": {"title": "One", "sets": "align.weight=0.5 prior.source=textual"}}
    tables["one"]["rows"] = {"a": "seed=0", "b": "align.weight=0.25"}
    write_tables(repository / "tables.yaml", tables=tables, seeds=[0])
    found = planned(repository)
    assert [one.params["train_ae"]["align"]["weight"] for one in found] == [0.5, 0.25]
    assert {one.params["extract_features"]["prior"]["source"] for one in found} == {"textual"}
    assert found[1].settings.count("align.weight=0.25") == 1
    assert "align.weight=0.5" not in found[1].settings


def test_rows_that_lead_to_the_same_parameters_are_one_experiment(repository: Path) -> None:
    """Whatever table they stand in, named after the first; what stands in params.yaml already changes nothing."""
    found = entries(read_tables_file(repository / "tables.yaml"), repository)
    names = {(one.table, one.row, one.seed): one.experiment.name for one in found}
    assert names["two", "again", 1] == names["one", "semantic", 1] == "semantic-s1"
    assert [one.name for one in experiments(found)] == [
        *("semantic-s0", "lost-s0", "kl-s0"),
        *("semantic-s1", "lost-s1", "kl-s1"),
    ]


def test_parameters_are_those_that_the_stages_depend_on(repository: Path) -> None:
    """Not of another preset's sizes, nor of the preset's name."""
    plain = experiment("x", ["preset=digits"], repository)
    assert list(plain.params) == list(STAGES)
    with (repository / "presets/imagenet.yaml").open("a") as file:
        file.write("# another word\n")
    shutil.copy(repository / "presets/digits.yaml", repository / "presets/mine.yaml")
    assert experiment("x", ["preset=mine"], repository).params == plain.params
    assert experiment("x", ["align.weight=0.05"], repository).params != plain.params
    assert experiment("x", ["align.weight=1e-2"], repository).params == plain.params
    assert experiment("x", ["train_ae.steps=preset"], repository).params == plain.params


def test_what_only_the_preset_has_can_be_set(repository: Path) -> None:
    """DVC is told so with a plus."""
    settings = ["seed=1", "train_ae.optimizer.warmup_steps=7", "align.options.tau=0.5"]
    with pytest.raises(ParamsError, match=r"did you mean 'warmup_steps'"):
        experiment("x", ["train_ae.optimizer.warmup_step=7"], repository)
    one = experiment("x", settings[:2], repository)
    assert one.params["train_ae"]["train_ae"]["optimizer"]["warmup_steps"] == 7
    assert one.seed == 1
    tree = read_yaml(repository / "params.yaml")
    assert dvc_overrides(settings, tree) == [settings[0], f"+{settings[1]}", f"+{settings[2]}"]


def test_dvc_makes_the_same_of_all_settings(tmp_path: Path) -> None:
    """Its own code writes params.yaml here, and what the stages would read there are the experiment's parameters."""
    tables = read_tables_file(ROOT / "tables.yaml")
    found = experiments(entries(tables, ROOT))
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    lr = experiment("lr", ["train_mar.optimizer.lr=5e-05", "train_mar.head_width=64"], ROOT)
    for one in [*found[:: len(tables.seeds) + 1], found[-1], lr]:
        shutil.copy(ROOT / "params.yaml", tmp_path)
        tree = read_yaml(ROOT / "params.yaml")
        apply_overrides(tmp_path / "params.yaml", dvc_overrides(one.settings, tree))
        params = resolve(tmp_path).params
        assert {stage: params.tracked(stage) for stage in STAGES} == one.params, one.name


def test_a_plugin_that_is_named_belongs_to_the_experiment(repository: Path) -> None:
    """With the digest of its file."""
    file = repository / "plugins/alignment/mine.py"
    file.parent.mkdir(parents=True)
    file.write_text("class Pull:\n    pass\n")
    settings = ["align.objective=plugins.alignment.mine:Pull"]
    before = experiment("x", settings, repository).plugins
    assert list(before) == ["plugins.alignment.mine:Pull"]
    file.write_text("class Pull:\n    strength = 2\n")
    assert experiment("x", settings, repository).plugins != before
    with pytest.raises(ParamsError, match=r"mine.py has no 'Pul', .*did you mean 'Pull'"):
        experiment("x", ["align.objective=plugins.alignment.mine:Pul"], repository)


def one_row(row: str) -> dict[str, Any]:
    """A table with one row of the given settings."""
    return {"tables": {"one": {"title": "x", "rows": {"a": row}}}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"preset": "digts"}, "did you mean 'digits'?"),
        ({"seeds": []}, "seeds"),
        ({"sedes": [0]}, "tables.yaml: sedes: unknown key"),
        (one_row("align.wieght=1"), "tables.one.rows.a: align.wieght: unknown key, allowed: "),
        (one_row("align.wieght=1"), "did you mean 'weight'?"),
        (one_row("train_mar.optimizer.beta=0.9"), "did you mean 'beta2'?"),
        (one_row("align.weight=much"), "tables.one.rows.a: align.weight: found 'much'"),
        (one_row("align"), "tables.one.rows.a: 'align' cannot be read (missing EQUAL"),
        (one_row("align.weight=[1"), "cannot be read"),
        (one_row("align.weight=0.1,0.2"), "sets no value, or several; expected key=value"),
        ({"tables": {"one": {"title": "x", "rows": {"a b": "seed=0"}}}}, "row 'a b': a name may have"),
        (
            {
                "tables": {
                    "one": {"title": "x", "rows": {"a": "align.weight=1.0"}},
                    "two": {"title": "x", "rows": {"a": "align.weight=2.0"}},
                }
            },
            "tables.two.rows.a: another table has a row 'a' that sets something else",
        ),
        ({"paper": {"three": {"source": "x", "columns": [], "rows": {}}}}, "there is no table 'three'"),
        ({"paper": {"two": {"source": "x", "columns": ["FID"], "rows": {"again": "1 2"}}}}, "not one number"),
        ({"paper": {"two": {"source": "x", "columns": ["FID"], "rows": {"b": "1"}}}}, "there is no row 'b'"),
        (
            {"claims": [{"says": "x", "by": "y", "metric": "a.b", "rows": ["kll"], "than": 0.0, "expect": "lower"}]},
            "there is no row 'kll', allowed: again, kl, lost, semantic; did you mean 'kl'?",
        ),
        (
            {"claims": [{"says": "x", "by": "y", "metric": "a.b", "rows": ["kl"], "expect": "lower"}]},
            "a claim has rows",
        ),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_told(
    repository: Path, changes: Mapping[str, Any], said: str
) -> None:
    write_tables(repository / "tables.yaml", **changes)
    with pytest.raises(ParamsError, match=re.escape(said)):
        planned(repository)


def test_a_file_that_is_no_mapping_is_told(repository: Path) -> None:
    (repository / "tables.yaml").write_text(yaml.safe_dump(["a"]))
    with pytest.raises(ParamsError, match=r"tables\.yaml"):
        planned(repository)
    (repository / "tables.yaml").unlink()
    with pytest.raises(ParamsError, match="does not exist"):
        planned(repository)
