"""The parameters of the last commit, whatever someone is trying out in the tree."""

import copy
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from flowprior.config.presets import resolve
from flowprior.config.schema import Params
from flowprior.config.yaml12 import read_text

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ("digits", "imagenet", "smoke")
GONE = object()
"""Stands for a key that is removed."""


@cache
def text_of(name: str) -> str:
    """A file as it was committed last; as it is where there is no git."""
    done = subprocess.run(
        ["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else (ROOT / name).read_text(encoding="utf-8")


def write_repository(root: Path) -> Path:
    """params.yaml, the presets and an empty dvc.yaml in a folder."""
    (root / "presets").mkdir(parents=True)
    for name in ("params.yaml", *(f"presets/{preset}.yaml" for preset in PRESETS)):
        (root / name).write_text(text_of(name), encoding="utf-8")
    (root / "dvc.yaml").write_text("stages: {}\n")
    return root


def tree(preset: str = "digits", **settings: Any) -> dict[str, Any]:
    """What params.yaml says, with some keys set (`align__weight=0.1`, two underscores for a dot) or `GONE`."""
    found: Any = copy.deepcopy(read_text(text_of("params.yaml"), "params.yaml"))
    for name, value in {"preset": preset, **settings}.items():
        *above, last = name.split("__")
        node = found
        for part in above:
            node = node.setdefault(part, {})
        if value is GONE:
            del node[last]
        else:
            node[last] = value
    return dict(found)


def setting(key: str, value: Any, preset: str = "digits") -> dict[str, Any]:
    """`tree` with one key, written with dots."""
    return tree(preset, **{key.replace(".", "__"): value})


def params(root: Path, preset: str = "digits", **settings: Any) -> Params:
    """Checked parameters of a repository; see `tree`."""
    return resolve(root, tree(preset, **settings)).params
