"""Workspaces for tests: the project as a user has it, and how a user runs things in it."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from flowprior.config.schema import STAGES as SECTIONS

from .closure import ROOT

STAGES = list(SECTIONS)
BIN = Path(sys.executable).parent


def environment(**changes: str) -> dict[str, str]:
    """A user's: the tools, and a name for commits, which a bare machine has not; tracking is off."""
    plain = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("DVC_") and key != "PYTHONPATH"
    }
    return {
        **plain,
        "PATH": f"{BIN}:{plain['PATH']}",
        "FLOWPRIOR_MLFLOW": "off",
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@example.com",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@example.com",
        **changes,
    }


def run(command: list[str], cwd: Path) -> str:
    """Run a command as a user would; its output, or a failure that shows it."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


def configure(root: Path, **settings: Any) -> None:
    """Set parameters of a workspace: `preset="smoke"`, `align__weight=0.1` (`__` for a dot)."""
    path = root / "params.yaml"
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, value in settings.items():
        *above, last = name.split("__")
        section = tree
        for part in above:
            section = section.setdefault(part, {})
        section[last] = value
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


def clone(target: Path, **settings: Any) -> Path:
    """The working tree (tracked and new files) as a repository of its own with the smoke preset.

    Its parameters are those of the last commit, not what someone is trying out in the tree.
    """
    for name in ls_files("--cached", "--others", "--exclude-standard"):
        if (ROOT / name).is_file() and not name.startswith("metrics/"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    for name in ls_files("--cached", "params.yaml", "presets", "stages/toy/params.yaml"):
        committed = subprocess.run(
            ["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True, check=False
        )
        if committed.returncode == 0:
            (target / name).write_bytes(committed.stdout)
    (target / "dvc.lock").unlink(missing_ok=True)
    configure(target, **{"preset": "smoke"} | settings)
    run(["git", "init", "-q"], target)
    run(["git", "add", "-A"], target)
    run(["git", "commit", "-qm", "clone"], target)
    return target


def read_committed(name: str) -> Any:
    """A YAML file of the last commit."""
    done = subprocess.run(
        ["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True, check=True
    )
    return yaml.safe_load(done.stdout)


def ls_files(*arguments: str) -> list[str]:
    """Names that git lists of the tree."""
    command = ["git", "ls-files", "-z", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return list(filter(None, done.stdout.decode().split("\0")))


def stages_run(output: str) -> list[str]:
    """Stages that DVC really ran, from what it printed."""
    return [stage for stage in STAGES if f"Running stage '{stage}'" in output]


def hashes(folder: Path) -> dict[str, str]:
    """Sha256 of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".gitignore"
    }


def copy_by_hand(finished: Path, target: Path) -> Path:
    """A copy of a clone and its artifacts, without git, DVC and checkpoints."""
    ignored = shutil.ignore_patterns(".git", ".dvc", ".ckpt")
    return Path(shutil.copytree(finished, target, ignore=ignored))


def run_stages(root: Path, *stages: str, launch: tuple[str, ...] = ("python",)) -> str:
    """Run stages by hand, without DVC; what they print."""
    command = ["env", "PYTHONPATH=src", *launch]
    return "".join(run([*command, f"stages/{stage}.py"], root) for stage in stages)
