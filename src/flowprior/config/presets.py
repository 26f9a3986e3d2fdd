"""`params.yaml` and a file of `presets/`, put together.

params.yaml holds what is studied, a preset what differs by scale. Where params.yaml says `preset`, or nothing, the
preset's value stands; anything else that it says wins, null included.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flowprior.config.messages import UNSAID, ParamsError, parse_as, unsaid
from flowprior.config.schema import Params
from flowprior.config.yaml12 import read_yaml
from flowprior.core.registry import allowed
from flowprior.core.root import find_root

PRESETS = "presets"
DEFERS = "preset"
"""The value in params.yaml that stands for the preset's."""


class Resolved(NamedTuple):
    """Parameters, and where they were found.

    Attributes:
        params: Checked.
        origins: File of every value, by dotted key.
    """

    params: Params
    origins: Mapping[str, str]


def load_params(root: Path | None = None) -> Params:
    """The parameters of a repository (default: the one around the working directory), checked.

    Raises:
        ParamsError: A file is absent, not YAML, or holds a value that cannot be used.
    """
    return resolve(root or find_root()).params


def resolve(root: Path, tree: object = None) -> Resolved:
    """Merge and check.

    Args:
        root: Has params.yaml and presets/.
        tree: What params.yaml says; None reads it.

    Raises:
        ParamsError: One line for each mistake, with the file that it is in.
    """
    tree = read_yaml(root / "params.yaml") if tree is None else tree
    if not isinstance(tree, Mapping):
        raise ParamsError("params.yaml holds no sections")
    name = tree.get("preset")
    names = preset_names(root)
    if name not in names:
        raise ParamsError(f"preset: found {name!r}, {allowed(str(name), names)}")
    file = f"{PRESETS}/{name}.yaml"
    scale = read_yaml(root / file)
    if not isinstance(scale, Mapping):
        raise ParamsError(f"{file} holds no sections")
    origins: dict[str, str] = {}
    merged = _merge(tree, scale, "", origins, file)
    params = parse_as(Params, merged, origins)
    left = [unsaid(key) for key, value in leaves(merged) if value is UNSAID]  # within `options`
    if left:
        raise ParamsError("\n".join(left))
    return Resolved(params, origins)


def preset_names(root: Path) -> list[str]:
    """Names of the files in `presets/`."""
    return sorted(path.stem for path in (root / PRESETS).glob("*.yaml"))


def _merge(
    ours: Mapping[str, Any],
    scale: Mapping[str, Any],
    prefix: str,
    origins: dict[str, str],
    file: str,
) -> dict[str, Any]:
    """The values of both mappings; `origins` gets the file of each."""
    merged: dict[str, Any] = {}
    for name in [*scale, *(name for name in ours if name not in scale)]:
        key = f"{prefix}{name}"
        mine, theirs = ours.get(name, DEFERS), scale.get(name, DEFERS)
        nested = [part for part in (mine, theirs) if isinstance(part, Mapping)]
        if nested and all(part == DEFERS or isinstance(part, Mapping) for part in (mine, theirs)):
            parts = [part if isinstance(part, Mapping) else {} for part in (mine, theirs)]
            merged[name] = _merge(parts[0], parts[1], f"{key}.", origins, file)
        elif mine == DEFERS and theirs != DEFERS:
            merged[name], origins[key] = theirs, file
        else:  # `preset` on both sides: a key that is unknown or that the preset lacks, the check says which
            merged[name], origins[key] = UNSAID if mine == DEFERS else mine, "params.yaml"
    return merged


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested mappings."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
