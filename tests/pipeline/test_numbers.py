"""Numbers that are none: the run stops, says where and why, and goes on once the cause is taken back."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from .workspace import clone, configure, run

pytestmark = pytest.mark.slow

HAND = ["env", "PYTHONPATH=src", "OMP_NUM_THREADS=1", "python"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A clone in which the flow is trained."""
    target = clone(tmp_path_factory.mktemp("clone"))
    for stage in ("extract_features", "project", "train_flow"):
        run([*HAND, f"stages/{stage}.py"], target)
    return target


def test_an_infinite_loss_stops_a_stage_and_taking_the_value_back_goes_on(repository: Path) -> None:
    """Interrupted at the last checkpoint; then a weight that overflows; then the old weight again, which resumes."""
    hook = repository.parent / "interrupt.py"
    hook.write_text(
        "import runpy, sys\nfrom flowprior.training.session import Session\n"
        "save = Session._save\n"
        "def stop(self, step):\n    save(self, step)\n    sys.exit('interrupted')\n"
        "Session._save = stop\nsys.argv = sys.argv[1:]\n"
        "sys.path.insert(0, 'stages')\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    with pytest.raises(AssertionError, match="interrupted"):
        run([*HAND, str(hook), "stages/train_ae.py"], repository)
    configure(repository, align__weight=1e39)
    with pytest.raises(AssertionError) as stopped:
        run([*HAND, "stages/train_ae.py"], repository)
    said = str(stopped.value)
    assert "train_ae: the loss of the autoencoder is inf at step 0; no checkpoint yet" in said
    assert "Lower the learning rate or the weight" in said
    assert not (repository / "data/autoencoder").exists()
    configure(repository, align__weight=0.01)
    assert "goes on at step 20 of 60" in run([*HAND, "stages/train_ae.py"], repository)
    assert np.isfinite(json.loads((repository / "metrics/train_ae.json").read_text())["loss"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_numbers_are_told_and_the_old_ones_stay(
    repository: Path, tmp_path: Path, value: float
) -> None:
    features = np.random.default_rng(0).normal(size=(500, 12)).astype("float32")
    features[321, 7] = value
    np.save(tmp_path / "features.npy", features)
    before = (repository / "data/features/manifest.json").read_bytes()
    shutil.copy(repository / "params.yaml", tmp_path / "params.yaml")
    configure(repository, prior__source="file", prior__path=str(tmp_path / "features.npy"))
    try:
        with pytest.raises(AssertionError, match="features hold NaN or infinite values"):
            run([*HAND, "stages/extract_features.py"], repository)
    finally:
        shutil.copy(tmp_path / "params.yaml", repository / "params.yaml")
    assert (repository / "data/features/manifest.json").read_bytes() == before
