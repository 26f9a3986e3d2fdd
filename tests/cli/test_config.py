"""`flowprior config`: all parameters as stages get them, and where each comes from."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flowprior.cli.config import as_yaml
from flowprior.config.presets import leaves, load_params, preset_names
from flowprior.config.schema import STAGES, Params
from flowprior.config.yaml12 import read_text, read_yaml

from .conftest import invoke, mistake, output


def values(text: str) -> Any:
    """What the printed YAML says."""
    return read_text(text, "output")


def origins(text: str) -> dict[str, str]:
    """The origin of each value, by dotted key, from the printed comments."""
    found, sections = {}, []
    for line in text.splitlines():
        indent, key, rest = re.fullmatch(r"( *)([\w.]+):(.*)", line).groups()
        sections = [*sections[: len(indent) // 2], key]
        if rest:
            found[".".join(sections)] = rest.rpartition("  # ")[2]
    return found


@pytest.mark.parametrize("preset", ["digits", "smoke", "imagenet"])
def test_it_prints_the_parameters_that_stages_get(preset: str, project: Path) -> None:
    """As YAML that reads as these."""
    assert preset in preset_names(project)
    read = values(output("config", "--set", f"preset={preset}"))
    path = project / "params.yaml"
    path.write_text(re.sub(r"(?m)^preset: \w+", f"preset: {preset}", path.read_text()))
    assert read == load_params(project).model_dump(mode="json")
    assert Params.model_validate(read) == load_params(project)


def test_each_value_is_in_the_file_that_it_is_said_to_come_from(project: Path) -> None:
    text = output("config")
    files = {
        name: dict(leaves(read_yaml(project / name)))
        for name in ("params.yaml", "presets/digits.yaml")
    }
    printed = dict(leaves(values(text)))
    where = origins(text)
    assert where.keys() == printed.keys()
    assert set(where.values()) == files.keys()
    for key, file in where.items():
        assert files[file][key] == printed[key], key
        if file != "params.yaml":
            assert files["params.yaml"].get(key, "preset") == "preset", key


def test_origins_are_aligned(project: Path) -> None:
    columns = {line.index("  # ") for line in output("config").splitlines() if "  # " in line}
    assert len(columns) == 1


def test_a_line_that_is_too_long_does_not_move_the_others(project: Path) -> None:
    long = "x" * 200
    text = output("config", "--set", f"prior.path={long}", "--set", "prior.source=textual")
    assert f"  path: {long}  # --set" in text.splitlines()
    assert "seed: 0" in text
    assert text.splitlines()[0].index("#") < 80


def test_what_is_set_is_said_to_be_set(project: Path) -> None:
    """A key that only the preset has, one that params.yaml has, one below a mapping, with and without dvc's plus."""
    text = output(
        "config",
        "--set",
        "train_ae.steps=1234",
        "-S",
        "+train_ae.optimizer.warmup_steps=7",
        "-S",
        "train_flow.width=16",
        "-S",
        "align.weight=1e-3",
    )
    read, where = values(text), origins(text)
    assert read["train_ae"]["steps"] == 1234
    assert read["train_ae"]["optimizer"]["warmup_steps"] == 7
    assert read["train_flow"]["width"] == 16
    assert read["align"]["weight"] == 1e-3
    assert {key for key, origin in where.items() if origin == "--set"} == {
        "train_ae.steps",
        "train_ae.optimizer.warmup_steps",
        "train_flow.width",
        "align.weight",
    }


def test_what_is_set_to_the_presets_value_comes_from_the_preset(project: Path) -> None:
    where = origins(output("config", "-S", "preset=smoke", "-S", "train_ae.steps=preset"))
    assert where["preset"] == "--set"
    assert where["train_ae.steps"] == "presets/smoke.yaml"


def test_null_is_a_value(project: Path) -> None:
    text = output("config", "-S", "preset=imagenet", "-S", "train_ae.encoder=null")
    assert values(text)["train_ae"]["encoder"] is None
    assert origins(text)["train_ae.encoder"] == "--set"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_shown_what_it_reads(stage: str, project: Path) -> None:
    assert values(output("config", "--stage", stage)) == load_params(project).tracked(stage)


def test_json_has_the_same(project: Path) -> None:
    text = output("config", "--stage", "train_mar")
    told = json.loads(output("config", "--stage", "train_mar", "--json"))
    assert told == {"parameters": values(text), "origins": origins(text)}


def test_what_may_not_be_meant_is_noted(project: Path) -> None:
    result = invoke("config", "-S", "train_ae.steps=100")
    assert result.exit_code == 0
    assert result.stderr.startswith("note: train_ae: all 100 steps lie in the warm-up of 100")


def test_a_plugins_options_come_from_params_yaml(project: Path) -> None:
    text = output(
        "config",
        "-S",
        "align.objective=plugins.alignment.quantiles:QuantileMatching",
        "-S",
        "align.options={power: 3.0}",
    )
    assert values(text)["align"]["options"] == {"power": 3.0}
    assert origins(text)["align.options.power"] == "--set"
    assert origins(text)["prior.options"] == "params.yaml"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-S", "train_ae.widht=3"], "train_ae.widht: unknown key, .*did you mean 'width'"),
        (["-S", "preset=digts"], "preset: found 'digts', allowed: digits, .*did you mean 'digits'"),
        (["-S", "align.weight"], "'align.weight' cannot be read .*expected key=value"),
        (["-S", "align.weight=1,2"], "sets no value, or several"),
        (["--stage", "train_aa"], "--stage 'train_aa': the stages are .*did you mean 'train_ae'"),
        (["-S", "align.objective=plugins.alignment.mine:Mine"], "mine.py does not exist"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_a_mistake_is_a_line(arguments: list[str], said: str, project: Path) -> None:
    assert re.search(said, mistake("config", *arguments))


def test_several_mistakes_have_a_line_each(project: Path) -> None:
    result = invoke("config", "-S", "seed=-1", "-S", "train_ae.widht=3")
    assert result.exit_code == 2
    head, *lines = result.stderr.splitlines()
    assert head == "flowprior: the parameters cannot be used:"
    assert [line.partition(":")[0] for line in lines] == ["seed", "train_ae.widht"]


def test_a_mistake_in_a_preset_names_the_file(project: Path) -> None:
    path = project / "presets/digits.yaml"
    path.write_text(path.read_text().replace("num_latents: 8", "num_latents: eight"))
    assert "(in presets/digits.yaml)" in mistake("config")


def test_outside_a_project_the_missing_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "params.yaml does not exist" in mistake("config")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), PLAIN, max_size=4))
def test_any_value_reads_as_the_same_by_either_version_of_yaml(tree: dict[str, Any]) -> None:
    """Also texts that look like numbers, and ones of several lines; each value has a line."""
    text = as_yaml(tree, dict.fromkeys(tree, "somewhere"))
    assert len(text.split("\n")) == max(1, len(tree))
    assert values(text or "{}") == tree
    assert yaml.safe_load(text or "{}") == tree


@pytest.mark.parametrize(
    "text", ["1e-4", "1_000", "on", "0x1f", "12:30", "a\nb", "", "#", "null", "é", "2026-11-26"]
)
def test_a_text_stays_a_text(text: str) -> None:
    printed = as_yaml({"key": text}, {"key": "somewhere"})
    assert values(printed) == yaml.safe_load(printed) == {"key": text}
