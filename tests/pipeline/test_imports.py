"""A stage starts with what it uses, and no more: each of these costs every process a second or several."""

import os
import subprocess
import sys

import pytest

from flowprior.config.schema import STAGES

from .closure import ROOT

DEAR = {
    "mlflow",
    "transformers",
    "diffusers",
    "huggingface_hub",
    "timm",
    "torchvision",
    "sklearn",
    "skimage",
    "scipy",
    "pandas",
    "matplotlib",
    "torch_fidelity",
    "torchdiffeq",
    "lpips",
    "faiss",
    "webdataset",
    "dvc",
}
TRANSFORMERS = {"timm", "torchvision", "huggingface_hub"}
"""timm's blocks, and what timm brings."""
NEEDED = {
    "extract_features": set(),
    "project": set(),
    "train_flow": set(),
    "train_ae": TRANSFORMERS | {"matplotlib"},
    "encode_latents": set(),
    "train_mar": set(),
    "sample_eval": {"matplotlib"},
    "summary": set(),
}


def imported_by(code: str) -> set[str]:
    """Top-level modules that a fresh process has after some code."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'stages'}"}
    show = "; import sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code + show], env=env, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("stage", [*STAGES, "summary"])
def test_a_stage_imports_what_it_uses(stage: str) -> None:
    assert imported_by(f"import {stage}") & DEAR == NEEDED[stage]


def test_parameters_and_the_summary_do_without_torch() -> None:
    assert "torch" not in imported_by("import flowprior.config.launch, summary")


def test_the_library_brings_torch_alone() -> None:
    """And nothing before it is asked for a name."""
    assert not imported_by("import flowprior") & {"torch", "numpy", *DEAR}
    assert not imported_by("from flowprior import FlowPrior, alignment_loss") & {
        "accelerate",
        *DEAR,
    }
