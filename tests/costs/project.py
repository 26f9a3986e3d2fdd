"""A folder that passes for a repository, with the committed parameters."""

import shutil
import subprocess
from pathlib import Path

from ..pipeline.closure import ROOT


def write_project(root: Path) -> Path:
    """Write params.yaml and presets/ of the last commit, a dvc.yaml and the example plugins into a folder."""
    command = ["git", "ls-tree", "-r", "--name-only", "HEAD", "params.yaml", "presets"]
    for name in _git(*command[1:]).decode().splitlines():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(_git("show", f"HEAD:{name}"))
    shutil.copy(ROOT / "dvc.yaml", root)
    shutil.copytree(ROOT / "examples/plugins", root / "plugins")
    return root


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout
