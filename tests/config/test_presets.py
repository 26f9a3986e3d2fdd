"""params.yaml wins over the preset, but for what it leaves to it."""

import subprocess
import sys
from pathlib import Path

import pytest

from flowprior.config.messages import ParamsError
from flowprior.config.presets import leaves, load_params, preset_names, resolve
from flowprior.config.yaml12 import read_text, read_yaml

from .committed import GONE, PRESETS, ROOT, text_of, tree


@pytest.mark.parametrize("said", ["preset", GONE], ids=["preset", "nothing"])
def test_where_params_yaml_says_preset_or_nothing_the_presets_value_stands(
    root: Path, said: object
) -> None:
    found = resolve(root, tree("smoke", train_ae__steps=said))
    assert found.params.train_ae.steps == 60
    assert found.origins["train_ae.steps"] == "presets/smoke.yaml"


def test_a_value_of_params_yaml_wins_also_where_only_the_preset_has_the_key(root: Path) -> None:
    found = resolve(root, tree("smoke", train_ae__steps=7, train_ae__width=24))
    assert (found.params.train_ae.steps, found.params.train_ae.width) == (7, 24)
    assert found.params.train_ae.depth == 1
    assert found.origins["train_ae.width"] == "params.yaml"
    assert found.origins["train_ae.depth"] == "presets/smoke.yaml"


def test_null_is_a_value_and_not_the_presets(root: Path) -> None:
    found = resolve(root, tree("imagenet", train_ae__encoder=None))
    assert found.params.train_ae.encoder is None
    assert found.origins["train_ae.encoder"] == "params.yaml"
    left = resolve(root, tree("imagenet", train_ae__encoder="preset"))
    assert left.params.train_ae.encoder.startswith("vit_large")


def test_sections_within_sections_are_merged_key_by_key(root: Path) -> None:
    """`-S +train_ae.optimizer.lr=0.5` leaves the rest of the optimiser as it is."""
    before = resolve(root, tree("smoke")).params.train_ae.optimizer
    after = resolve(root, tree("smoke", train_ae__optimizer__lr=0.5)).params.train_ae.optimizer
    assert after == before.model_copy(update={"lr": 0.5})


def test_what_is_deferred_to_a_preset_that_lacks_it_is_told(root: Path) -> None:
    """Also where the word would pass as a value: a path, a name."""
    for key in (
        "align__weight",
        "seed",
        "prior__path",
        "train_ae__adversarial__backbone",
        "align__options__mode",
    ):
        with pytest.raises(ParamsError) as error:
            resolve(root, tree(**{key: "preset"}))
        line = str(error.value)
        assert line.startswith(f"{key.replace('__', '.')}: params.yaml says `preset`"), line
        assert len(line.splitlines()) == 1


@pytest.mark.parametrize("name", ["digts", None, 3, "preset"])
def test_an_unknown_preset_is_told_with_those_that_there_are(root: Path, name: object) -> None:
    with pytest.raises(ParamsError) as error:
        resolve(root, tree() | {"preset": name})
    assert str(error.value).startswith(f"preset: found {name!r}, allowed: digits, imagenet, smoke")
    assert ("did you mean 'digits'?" in str(error.value)) == (name == "digts")


def test_a_preset_of_ones_own_is_a_file(root: Path) -> None:
    (root / "presets/mine.yaml").write_text(text_of("presets/smoke.yaml"))
    assert preset_names(root) == ["digits", "imagenet", "mine", "smoke"]
    assert resolve(root, tree("mine")).params.train_ae.steps == 60


def test_load_params_reads_the_repository_around_the_working_directory(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "stages").mkdir()
    monkeypatch.chdir(root / "stages")
    assert load_params() == load_params(root) == resolve(root).params


def test_a_plugin_is_named_without_being_run(root: Path) -> None:
    (root / "plugins/alignment").mkdir(parents=True)
    name = "plugins.alignment.own:Own"
    with pytest.raises(ParamsError, match=r"align\.objective: .*own\.py does not exist"):
        resolve(root, tree(align__objective=name))
    (root / "plugins/alignment/own.py").write_text("raise SystemExit\n\n\nclass Own:\n    pass\n")
    found = resolve(root, tree(align__objective=name, align__options={"power": 3}))
    assert found.params.align.objective == name
    assert found.params.align.options == {"power": 3}
    with pytest.raises(ParamsError, match=r"a source of images lies in plugins/images/"):
        resolve(root, tree("imagenet", images__source=name))


@pytest.mark.parametrize("preset", sorted(path.stem for path in (ROOT / "presets").glob("*.yaml")))
def test_every_file_of_presets_is_valid(preset: str) -> None:
    """As it is in the tree, with the parameters of the last commit otherwise."""
    assert resolve(ROOT, tree(preset)).params.preset == preset


def test_what_is_equal_in_all_presets_stands_once() -> None:
    """In params.yaml; a preset holds what differs by scale."""
    trees = [dict(leaves(read_text(text_of(f"presets/{name}.yaml"), name))) for name in PRESETS]
    alike = {key for key in trees[0] if len({repr(tree.get(key)) for tree in trees}) == 1}
    assert not alike


def test_no_value_stands_both_in_params_yaml_and_in_a_preset() -> None:
    said = dict(leaves(read_text(text_of("params.yaml"), "params.yaml")))
    for name in PRESETS:
        theirs = dict(leaves(read_text(text_of(f"presets/{name}.yaml"), name)))
        assert [key for key in theirs if said.get(key, "preset") != "preset"] == []


def test_parameters_are_checked_without_torch(root: Path) -> None:
    """It takes seconds to import; a typo is told before."""
    code = (
        "import sys\n"
        "from flowprior.config import launch, messages, presets, schema, versions, yaml12\n"
        "presets.load_params().behaviour('train_ae')\n"
        "heavy = {'torch', 'numpy', 'timm', 'accelerate', 'mlflow'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_leaves_are_dotted_and_empty_mappings_are_leaves() -> None:
    found = dict(leaves({"a": {"b": {"c": 1}, "d": {}}, "e": None}))
    assert found == {"a.b.c": 1, "a.d": {}, "e": None}


def test_the_shipped_files_are_those_that_are_read(root: Path) -> None:
    assert read_yaml(root / "params.yaml") == tree(**read_text("{preset: digits}", ""))
