"""Every mistake has its line, with the file that it is in."""

from pathlib import Path

import pytest

from flowprior.config.messages import ParamsError, parse_as
from flowprior.config.presets import resolve
from flowprior.core.section import Section

from .committed import GONE, setting, tree


@pytest.mark.parametrize("key", ["seed", "align.weight", "align", "images.path"])
def test_a_key_that_neither_file_has_is_missing(root: Path, key: str) -> None:
    with pytest.raises(ParamsError, match=f"^{key}: missing"):
        resolve(root, setting(key, GONE))


def test_every_mistake_is_told_at_once(root: Path) -> None:
    with pytest.raises(ParamsError) as error:
        resolve(root, tree(align__wieght=1, sede=1))
    keys = {line.split(":")[0] for line in str(error.value).splitlines()}
    assert keys == {"align.wieght", "sede"}


def test_a_mistake_in_a_preset_is_told_with_the_presets_file(root: Path) -> None:
    file = root / "presets/smoke.yaml"
    file.write_text(file.read_text().replace("eval_vectors: 200", "eval_vector: 200"))
    with pytest.raises(ParamsError) as error:
        resolve(root, tree("smoke"))
    unknown = next(line for line in str(error.value).splitlines() if "eval_vector:" in line)
    assert "unknown key" in unknown
    assert "did you mean 'eval_vectors'?" in unknown
    assert unknown.endswith("(in presets/smoke.yaml)")


def test_a_bad_value_of_a_preset_is_told_with_the_presets_file(root: Path) -> None:
    file = root / "presets/smoke.yaml"
    file.write_text(file.read_text().replace("eval_vectors: 200", "eval_vectors: 2"))
    with pytest.raises(ParamsError, match=r"train_flow\.eval_vectors: .*presets/smoke\.yaml"):
        resolve(root, tree("smoke"))


def test_a_mistake_in_params_yaml_names_no_other_file(root: Path) -> None:
    with pytest.raises(ParamsError) as error:
        resolve(root, tree(train_flow__eval_vectors=2))
    assert "presets/" not in str(error.value)


def test_any_section_can_be_checked_alone() -> None:
    class Two(Section):
        one: int
        two: int | None

    assert parse_as(Two, {"one": 1, "two": None}) == Two(one=1, two=None)
    with pytest.raises(ParamsError, match=r"^two: missing"):
        parse_as(Two, {"one": 1})
