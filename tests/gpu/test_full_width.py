"""The run at full width, on a GPU where there is one; its script, at smoke's size, everywhere."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["sample_eval", "train_ae", "train_flow", "train_mar"]


def run(out: Path, *arguments: str) -> dict[str, Any]:
    """What the script wrote, by file."""
    environment = {name: value for name, value in os.environ.items() if name != "DVC_ROOT"}
    environment |= {
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'stages'}",
        "FLOWPRIOR_MLFLOW": "off",
    }
    command = [sys.executable, str(ROOT / "tests/gpu/full_width.py"), "--out", str(out)]
    done = subprocess.run(
        [*command, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    assert not done.returncode, done.stdout
    return {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}


@pytest.mark.slow
def test_the_script_reports_each_stage(tmp_path: Path) -> None:
    found = run(
        tmp_path, "--preset", "smoke", "--steps", "12", "--matmul-size", "256", "--only", *STAGES
    )
    assert list(found) == STAGES
    for one in found.values():
        assert one["seconds"] > 0
        assert one["flops"] > 0
        assert one["first_seconds"] > 0
        assert not one["compile"]
        assert 0 < one["share_of_matmul"] < 1
    assert all(found[stage]["steps_timed"] == 8 for stage in STAGES if stage != "sample_eval")


@pytest.mark.gpu
def test_full_width_in_bf16() -> None:
    """Writes metrics/gpu/: commit what it finds, with the device it names."""
    found = run(ROOT / "metrics/gpu", "--gpus", "8")
    assert len(found) == 2 * len(STAGES)
    for one in found.values():
        assert one["precision"] == "bf16"
        assert one["share_of_matmul"] > 0.1
