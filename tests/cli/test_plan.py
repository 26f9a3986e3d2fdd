"""`flowprior plan`: what it prints, and its mistakes; what is counted is tried in tests/costs."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowprior.config.schema import STAGES
from flowprior.costs.preset import params_to_plan

from .conftest import mistake, output


def configure(root: Path, file: str, key: str, value: Any) -> None:
    """Set a dotted key of a file."""
    tree = yaml.safe_load((root / file).read_text(encoding="utf-8"))
    *above, last = key.split(".")
    node = tree
    for part in above:
        node = node[part]
    node[last] = value
    (root / file).write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


@pytest.mark.parametrize("preset", ["digits", "smoke"])
def test_a_line_for_each_stage_and_one_for_all(preset: str, project: Path) -> None:
    text = output("plan", "--preset", preset, "--gpus", "2")
    for stage in STAGES:
        assert len(re.findall(rf"^{stage} .*(fp32|bf16)$", text, re.MULTILINE)) == 1
    assert re.search(r"^in all \S+ GPU-hours, \S+ hours on 2 GPUs, \S+ GiB", text, re.MULTILINE)
    assert re.search(r"of which 40% are reached", text)
    assert "train_images 1438" in text
    assert "Not counted" in text
    assert text.startswith(f"preset {preset}, ")


def test_figures_of_the_machine_and_of_the_data_can_be_given(project: Path) -> None:
    text = output(
        *("plan", "--preset", "smoke", "--gpus", "1", "--utilisation", "0.25"),
        *("--bf16-tflops", "100", "--fp32-tflops", "10.5", "--memory-gib", "24"),
        *("--train-images", "100", "--num-classes", "3", "--feature-vectors", "5000"),
    )
    assert "1 x 100 TFLOP/s in bf16, 10.5 in fp32, of which 25% are reached; 24 GiB each" in text
    assert "train_images 100, held_out_images 359, num_classes 3, channels 1" in text
    assert "feature_vectors 5000, feature_dim 64" in text
    assert "hours on 1 GPU," in text


def test_a_plugin_that_cannot_be_counted_is_said_so(project: Path) -> None:
    configure(project, "params.yaml", "prior.source", "plugins.features.edges:edges")
    text = output("plan", "--preset", "smoke")
    assert "project: not counted: prior.source plugins.features.edges:edges" in text
    assert "in all at least" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--utilisation", "0"], "--utilisation': '0' is not a share: above 0, at most 1"),
        (["--utilisation", "2"], "--utilisation': '2' is not a share"),
        (["--utilisation", "nan"], "--utilisation': 'nan' is not a share"),
        (["--gpus", "-1"], "--gpus': '-1' is not a whole number of at least 1"),
        (["--gpus", "0"], "--gpus': '0' is not a whole number of at least 1"),
        (["--gpus", "many"], "--gpus': 'many' is not a whole number"),
        (["--bf16-tflops", "nan"], "--bf16-tflops': 'nan' is not a positive, finite number"),
        (["--memory-gib", "inf"], "--memory-gib': 'inf' is not a positive, finite number"),
        (["--train-images", "0"], "--train-images': '0' is not a whole number of at least 1"),
        (
            ["--preset", "imagent"],
            "found 'imagent', allowed: digits, imagenet, smoke; did you mean",
        ),
        (["--prset", "smoke"], "--prset"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_a_line_and_status_2(arguments: list[str], said: str, project: Path) -> None:
    assert said in mistake("plan", *arguments)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_ae.adversarial.backbone": "vit_tyni"}, "timm has no model 'vit_tyni'"),
        ({"train_ae.adversarial.backbone": "local-dir:/nowhere"}, "'local-dir:/nowhere'"),
        (
            {"prior.source": "file", "prior.path": "x.npy"},
            "with prior.source file give --feature-vectors and --feature-dim",
        ),
        ({"train_ae.widht": 8}, "did you mean 'width'?"),
    ],
    ids=str,
)
def test_parameters_that_cannot_be_counted_are_told(
    changes: dict[str, object], said: str, project: Path
) -> None:
    """Of any preset; one with small sizes is soon done with the rest."""
    small = {"width": 64, "depth": 1, "encoder": None}
    for name, value in small.items():
        configure(project, "presets/imagenet.yaml", f"train_ae.{name}", value)
    configure(project, "params.yaml", "train_ae.encoder", None)
    for key, value in changes.items():
        configure(project, "params.yaml", key, value)
    assert said in mistake("plan", "--preset", "imagenet")


def test_without_lpips_it_is_said_what_to_install(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert "pip install 'flowprior[imagenet]'" in mistake("plan", "--preset", "imagenet")


def test_digits_in_the_file_do_not_stand_in_the_way_of_photographs(project: Path) -> None:
    configure(project, "params.yaml", "images.source", "digits")
    before = (project / "params.yaml").read_bytes()
    cfg = params_to_plan(project, "imagenet")
    assert not cfg.on_digits
    assert cfg.images.source == "imagefolder"
    assert params_to_plan(project, "digits").on_digits
    assert (project / "params.yaml").read_bytes() == before
