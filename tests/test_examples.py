"""What examples/ holds runs as it stands there, and shows what it says it shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .pipeline.closure import ROOT

pytestmark = pytest.mark.slow
EXAMPLES = ROOT / "examples"


def run(script: str, *arguments: str, cwd: Path) -> str:
    """What a script says."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_example_is_tested() -> None:
    """Those of plugins are, where plugins are."""
    source = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.iterdir():
        if path.suffix in (".py", ".ipynb"):
            assert f'"{path.name}"' in source, path


def test_ones_own_autoencoder_shows_reconstruction_against_spread(tmp_path: Path) -> None:
    """Its claim: the paper's loss narrows the latents, dmd does not, and both cost some of the reconstruction."""
    said = run("own_autoencoder.py", "--out", str(tmp_path / "own.png"), cwd=tmp_path)
    rows = dict(re.findall(r"'objective': '(\w+)'.*'std_ratio': ([\d.]+)", said))
    decibels = dict(re.findall(r"'objective': '(\w+)'.*'psnr_db': ([\d.]+)", said))
    assert float(decibels["none"]) > max(float(decibels["flow_prior"]), float(decibels["dmd"]))
    assert list(rows) == ["none", "flow_prior", "dmd"]
    assert float(rows["flow_prior"]) < float(rows["dmd"])
    assert (tmp_path / "own.png").stat().st_size > 10_000


def test_an_autoencoder_of_diffusers_is_pulled(tmp_path: Path) -> None:
    said = run("diffusers_vae.py", "--steps", "3", cwd=tmp_path)
    assert "step 3  loss" in said
    assert "1000 of 8192 latents" in said


def test_a_lightning_module_is_pulled(tmp_path: Path) -> None:
    assert "of 1600 latents" in run("lightning_module.py", cwd=tmp_path)


def test_the_notebook_runs_and_its_picture_opens_the_readme(tmp_path: Path) -> None:
    """Its verdicts: what seeks dense places is narrow, what compares distributions is good."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / "thousand_points.ipynb", 4)
    titles = nbformat.v4.new_code_cell("print({k: v.verdict for k, v in checks.items()})")
    notebook.cells.append(titles)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=900, resources=resources).execute()
    verdicts = notebook.cells[-1]["outputs"][0]["text"]
    for name in ("flow_prior", "likelihood", "elbo"):
        assert f"'{name}': 'narrow'" in verdicts
    for name in ("dmd", "mmd"):
        assert f"'{name}': 'good'" in verdicts
    assert (tmp_path / "thousand_points.png").stat().st_size > 50_000
    assert "](examples/thousand_points.png)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_notebook_is_kept_without_outputs() -> None:
    """They would go stale, and every run would be a change."""
    import nbformat

    for cell in nbformat.read(EXAMPLES / "thousand_points.ipynb", 4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
