"""YAML as DVC writes it."""

from pathlib import Path

import pytest

from flowprior.config.messages import ParamsError
from flowprior.config.presets import load_params
from flowprior.config.yaml12 import read_text, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [("5e-05", 5e-05), ("1E3", 1e3), ("0.05", 0.05), ("1.", 1.0), (".5", 0.5), ("-2.5e+3", -2.5e3)],
)
def test_numbers_as_dvc_writes_them_are_numbers(text: str, value: float) -> None:
    assert read_text(f"x: {text}", "text") == {"x": value}


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "y"])
def test_words_stay_words(word: str) -> None:
    assert read_text(f"x: {word}", "text") == {"x": word}


NOT_PARAMETERS = [
    "a: [",
    "seed: 0\nseed: 1",
    "!!python/object/apply:os.system ['true']",
    "- 1",
    "",
    "x: \x00",
]


@pytest.mark.parametrize("text", NOT_PARAMETERS)
@pytest.mark.parametrize("name", ["params.yaml", "presets/digits.yaml"])
def test_a_file_that_is_not_parameters_is_told(root: Path, text: str, name: str) -> None:
    (root / name).write_text(text)
    with pytest.raises(ParamsError):
        load_params(root)


def test_a_key_that_stands_twice_is_named_with_its_line(tmp_path: Path) -> None:
    """PyYAML takes the last one without a word."""
    (tmp_path / "x.yaml").write_text("a:\n  b: 1\n  b: 2\n")
    with pytest.raises(ParamsError, match=r"the key 'b' stands twice.*line 2"):
        read_yaml(tmp_path / "x.yaml")


def test_a_file_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"x\.yaml does not exist"):
        read_yaml(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {marker}']",
        "seed: !!python/object/new:os.system ['touch {marker}']",
        "seed: !!python/name:os.system",
        "!!python/object/apply:subprocess.check_output [['touch', '{marker}']]",
    ],
)
def test_a_tag_in_the_parameters_runs_nothing(root: Path, text: str) -> None:
    """Tags are not known, but for YAML's own."""
    marker = root / "marker"
    (root / "params.yaml").write_text(text.format(marker=marker))
    with pytest.raises(ParamsError, match="is not YAML: could not determine a constructor"):
        load_params(root)
    assert not marker.exists()
