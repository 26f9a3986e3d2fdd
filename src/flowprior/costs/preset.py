"""The parameters of a repository as they would be with another preset; no torch, so that mistakes are told at once."""

from collections.abc import Mapping
from pathlib import Path

from flowprior.config.presets import DEFERS, resolve
from flowprior.config.schema import Params
from flowprior.config.yaml12 import read_yaml


def params_with(root: Path, preset: str | None, images: str | None = None) -> Params:
    """What a run with `-S preset=<preset> -S images.path=<images>` would have.

    Args:
        root: The repository.
        preset: A file of presets/; None for that of params.yaml.
        images: Where the images are; None for where params.yaml says.

    Raises:
        ParamsError: There is no such preset, or a file cannot be used.
    """
    tree = read_yaml(root / "params.yaml")
    if preset is not None and isinstance(tree, Mapping):
        tree = {**tree, "preset": preset}
    if images is not None and isinstance(tree, Mapping):
        tree = {**tree, "images": {**tree.get("images", {}), "path": images}}
    return resolve(root, tree).params


def params_to_plan(root: Path, preset: str) -> Params:
    """The parameters with another preset, whose own images take the place of digits in params.yaml.

    Raises:
        ParamsError: There is no such preset, or a file cannot be used.
    """
    tree = read_yaml(root / "params.yaml")
    if not isinstance(tree, Mapping) or preset == tree.get("preset"):
        return resolve(root, tree).params
    tree, images = {**tree, "preset": preset}, tree.get("images")
    if isinstance(images, Mapping) and images.get("source") == "digits":
        tree["images"] = {**images, "source": DEFERS}
    return resolve(root, tree).params
