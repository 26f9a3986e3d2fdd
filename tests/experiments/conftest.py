"""A small repository with all that experiments need but stages, and a script in DVC's place."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowprior.experiments.planned import Experiment, entries, experiments
from flowprior.experiments.tables_file import read_tables_file

ROOT = Path(__file__).parents[2]
SMOKE: dict[str, Any] = {
    "preset": "smoke",
    "seeds": [0, 1],
    "tables": {
        "one": {
            "title": "One",
            "rows": {
                "semantic": "prior.source=semantic",
                "lost": "prior.source=file prior.path=/nowhere/features.npy",
                "kl": "align.objective=kl train_ae.optimizer.warmup_steps=5",
            },
        },
        "two": {"title": "Two", "rows": {"again": "prior.source=semantic"}},
    },
    "paper": {},
    "columns": [
        {"metric": "encode_latents.psnr_db", "name": "PSNR", "better": "higher", "digits": 2}
    ],
    "claims": [],
}
"""A tables file of the tests: two rows that run, one that cannot, and one that repeats the first."""


def write_tables(path: Path, **changes: Any) -> Path:
    """Write the tables file of the tests, with changes; returns its path."""
    path.write_text(yaml.safe_dump(SMOKE | changes, sort_keys=False), encoding="utf-8")
    return path


def run_git(root: Path, *command: str) -> str:
    """What git prints."""
    done = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with params.yaml, presets, versions and the tables file of the tests, as working directory."""
    root = tmp_path / "repository"
    for name in ("presets", "src/flowprior/config"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml", ".dvc/config", ".dvc/.gitignore"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / ".gitignore").write_text(".ckpt/\nmetrics/costs/\n__pycache__/\n")
    write_tables(root / "tables.yaml")
    run_git(root, "init", "-q", "-b", "main")
    run_git(root, "config", "user.name", "tester")
    run_git(root, "config", "user.email", "tester@example.com")
    run_git(root, "add", "-A")
    run_git(root, "commit", "-qm", "begin")
    monkeypatch.chdir(root)
    return root


def planned(root: Path) -> list[Experiment]:
    """The experiments of a repository's tables file."""
    return experiments(entries(read_tables_file(root / "tables.yaml"), root))


def copy_of_the_tree(target: Path) -> Path:
    """This working tree as it is (tracked and new files, but for results), as a git repository of its own."""
    for name in run_git(ROOT, "ls-files", "-z", "-c", "-o", "--exclude-standard").split("\0"):
        if name and (ROOT / name).is_file() and not name.startswith(("metrics/", "dvc.lock")):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    run_git(target, "init", "-q", "-b", "main")
    run_git(target, "config", "user.name", "tester")
    run_git(target, "config", "user.email", "tester@example.com")
    run_git(target, "add", "-A")
    run_git(target, "commit", "-qm", "begin")
    return target


FAKE_DVC = Path(__file__).with_name("fake_dvc.py")


@pytest.fixture
def fake_dvc(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`fake_dvc.py` on PATH in DVC's place, of an environment without GPUs; the folder of what it notes and obeys."""
    notes = tmp_path / "notes"
    binary = tmp_path / "bin/dvc"
    notes.mkdir()
    binary.parent.mkdir()
    binary.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE_DVC}" "$@"\n')
    binary.chmod(0o755)
    python = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", os.pathsep.join([str(binary.parent), python, os.environ["PATH"]]))
    monkeypatch.setenv("FAKE_DVC_NOTES", str(notes))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("FLOWPRIOR_HOME", raising=False)
    yield notes
    (notes / "hang").unlink(missing_ok=True)  # whatever still waits for it ends
