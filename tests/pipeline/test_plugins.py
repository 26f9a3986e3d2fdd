"""One's own objective, features, images and generator: copied into plugins/, named in params.yaml, no edit of src/."""

import json
import shutil
from pathlib import Path

import pytest

from .closure import ROOT
from .workspace import STAGES, configure, run, run_stages, stages_run

EXAMPLES = ROOT / "examples/plugins"

pytestmark = pytest.mark.slow


def copy(room: str, root: Path) -> Path:
    """The example of a room in a workspace's plugins."""
    (file,) = (EXAMPLES / room).glob("*.py")
    return Path(shutil.copy(file, root / "plugins" / room / file.name))


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*/*.py")), ids=lambda path: path.stem)
def test_an_example_is_short(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 60


def test_an_objective_reruns_the_autoencoder_and_again_when_it_is_edited(repository: Path) -> None:
    file = copy("alignment", repository)
    knob = "align.objective=plugins.alignment.quantiles:QuantileMatching"
    output = run(["dvc", "exp", "run", "-S", knob, "train_ae"], repository)
    assert stages_run(output) == ["train_ae"]
    first = (repository / "metrics/curves/train_ae.csv").read_text()
    file.write_text(file.read_text().replace("power: float = 2.0", "power: float = 1.0"))
    assert stages_run(run(["dvc", "repro", "train_ae"], repository)) == ["train_ae"]
    assert (repository / "metrics/curves/train_ae.csv").read_text() != first
    configure(repository, align__options={"power": 3.0})
    assert stages_run(run(["dvc", "repro", "train_ae"], repository)) == ["train_ae"]


def test_a_source_of_features_is_a_prior(repository: Path) -> None:
    copy("features", repository)
    knob = "prior.source=plugins.features.edges:edges"
    output = run(["dvc", "exp", "run", "-S", knob, "train_flow"], repository)
    assert stages_run(output) == STAGES[:3]
    metrics = json.loads((repository / "metrics/extract_features.json").read_text())
    assert metrics["dim"] == 2 * 16


def test_a_source_of_images_goes_through_every_stage(repository: Path) -> None:
    copy("images", repository)
    configure(
        repository,
        images__source="plugins.images.blobs:open_blobs",
        images__options={"count": 200},
        prior__source="gaussian",
        evaluation__judge="none",
        sample_eval__num_samples=20,
    )
    run_stages(repository, *STAGES)
    encoded = json.loads((repository / "metrics/encode_latents.json").read_text())
    assert encoded["num_images"] == 40
    assert json.loads((repository / "metrics/sample_eval.json").read_text())["num_samples"] == 20


def test_a_generator_is_trained_and_sampled(repository: Path) -> None:
    file = copy("generators", repository)
    knob = "generator.model=plugins.generators.class_gaussian:ClassGaussian"
    output = run(["dvc", "exp", "run", "-S", knob, "sample_eval"], repository)
    assert stages_run(output) == STAGES[5:]
    metrics = json.loads((repository / "metrics/train_mar.json").read_text())
    assert metrics["held_out_loss"] < 0.5  # of N(0, I), whose scale and place are known: 1/2
    assert json.loads((repository / "metrics/sample_eval.json").read_text())["fd_digits"] > 0
    file.unlink()
    with pytest.raises(AssertionError, match=r"class_gaussian.py does not exist"):
        run_stages(repository, "train_mar")
