"""The study's parameters: mistakes are named, in the file and on the command line, before torch is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowprior.config.messages import ParamsError
from flowprior.toy.config import FILE, load_study

from ..config.committed import ROOT, text_of
from .committed import study

FOLDER = ROOT / "stages/toy"


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("targets", ["mixture", "grid", "moon"], ["targets.2", "moon", "moons"]),
        ("objectives", ["dmdd"], ["objectives.0", "dmdd", "did you mean 'dmd'"]),
        ("align.objective", "flow", ["align.objective", "flow_prior"]),
        ("align.t_max", 1.0, ["align.t_max", "1"]),
        ("align.t_max", 0.0, ["align.t_max", "0"]),
        ("align.num_drws", 1, ["align.num_drws", "num_draws"]),
        ("preset", "paperr", ["preset", "did you mean 'paper'"]),
        ("presets.cpu.points.count", 10, ["too few", "neighbours"]),
        ("presets.cpu.points.time_groups", 7, ["must divide", "count"]),
        ("presets.cpu.density.bandwidth", 0.0, ["bandwidth"]),
        ("targets", ["grid"], ["targets must hold mixture"]),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(key: str, value: object, says: list[str]) -> None:
    with pytest.raises(ParamsError) as error:
        study(key, value)
    for part in says:
        assert part in str(error.value)


def write_study(root: Path, old: str, new: str) -> Path:
    """A repository with nothing but the study's parameters, one piece of them replaced."""
    (root / FILE).parent.mkdir(parents=True)
    text = text_of(FILE)
    assert old in text
    (root / FILE).write_text(text.replace(old, new, 1), encoding="utf-8")
    for name in ("dvc.yaml", "params.yaml"):
        (root / name).write_text("{}\n")
    return root


def test_a_mistake_is_said_to_be_in_the_studys_file(tmp_path: Path) -> None:
    root = write_study(tmp_path, "bandwidth: 0.1", "bandwidth: -0.1")
    with pytest.raises(ParamsError, match=rf"density\.bandwidth: found -0\.1.*\(in {FILE}\)"):
        load_study(root)
    (root / FILE).unlink()
    with pytest.raises(ParamsError, match=r"params\.yaml does not exist"):
        load_study(root)


def test_parameters_are_found_from_a_folder_below(tmp_path: Path, monkeypatch) -> None:
    root = write_study(tmp_path, "seed: 0", "seed: 7")
    (root / "below").mkdir()
    monkeypatch.chdir(root / "below")
    assert load_study().seed == 7


def run_script(name: str, *arguments: str, root: Path) -> subprocess.CompletedProcess[str]:
    """Start a script of the study in a repository, in a Python that has no torch."""
    (root / "blocked").mkdir(exist_ok=True)
    (root / "blocked/torch.py").write_text("raise SystemExit('torch was imported')\n")
    return subprocess.run(
        [sys.executable, FOLDER / f"{name}.py", *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root / 'blocked'}:{ROOT / 'src'}"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        ("study", ["moonz"], "study.py: found 'moonz', allowed: grid, mixture, moons"),
        ("study", ["moonz"], "did you mean 'moons'?"),
        ("study", [], "usage: study.py <one of mixture, grid, moons"),
        ("theory", ["moons"], "allowed: grid, mixture (exact in stages/toy/params.yaml)"),
        ("compare", ["dmd", "kl"], "usage: compare.py <one of none, flow_prior"),
    ],
)
def test_a_wrong_argument_is_told_before_torch_is_imported(
    script: str, arguments: list[str], says: str, tmp_path: Path
) -> None:
    done = run_script(script, *arguments, root=write_study(tmp_path, "seed: 0", "seed: 0"))
    assert done.returncode == 1
    assert says in done.stderr
    assert "torch" not in done.stderr


@pytest.mark.parametrize("script", ["study", "theory", "compare", "gallery"])
def test_a_wrong_parameter_is_told_before_torch_is_imported(script: str, tmp_path: Path) -> None:
    root = write_study(tmp_path, "num_draws: 4", "num_drws: 4")
    done = run_script(script, "mixture", root=root)
    assert done.returncode == 2
    assert "the parameters cannot be used:\nalign.num_draws: missing" in done.stderr
    assert "align.num_drws: unknown key" in done.stderr
