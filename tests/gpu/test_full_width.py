"""The run at full width, on a GPU where there is one; its script, at smoke's size, everywhere."""

import json
from pathlib import Path

import pytest

from .full_width import TRAINING, run_all

KEYS = {"flops_per_second", "matmul_flops_per_second", "peak_memory_gib", "share_of_matmul"}


@pytest.fixture(autouse=True)
def _paths(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).resolve().parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{root / 'src'}:{root / 'stages'}")
    monkeypatch.setenv("FLOWPRIOR_MLFLOW", "off")
    monkeypatch.delenv("DVC_ROOT", raising=False)


def test_the_script_reports_each_training_stage(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    written = list(run_all("smoke", tmp_path / "work", tmp_path / "out", steps=12, matmul_size=256))
    assert [path.stem for path in written] == [*TRAINING, "sample_eval"]
    for path in written:
        found = json.loads(path.read_text(encoding="utf-8"))
        assert set(found) >= KEYS
        assert found["step_seconds"] > 0
        assert found["step_flops"] > 0
        assert 0 < found["share_of_matmul"] < 1


@pytest.mark.gpu
def test_full_width_in_bf16(tmp_path: Path) -> None:
    """Writes metrics/gpu/: commit what it finds, with the device it names."""
    out = Path(__file__).resolve().parents[2] / "metrics/gpu"
    (tmp_path / "work").mkdir()
    written = run_all("imagenet", tmp_path / "work", out, steps=45, gpus=8, compiled=True)
    for path in written:
        found = json.loads(path.read_text(encoding="utf-8"))
        assert found["precision"] == "bf16"
        assert found["share_of_matmul"] > 0.1
