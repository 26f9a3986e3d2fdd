"""Folders of models: one's own, or of the hub's cache; weights are safetensors and named by their sha256."""

from pathlib import Path
from typing import Any

from flowprior.core.hub import hub_file, tensor_names
from flowprior.core.io import file_digest, read_json


def find_folder(
    name: str, revision: str | None, weights: str | None
) -> tuple[Path, dict[str, str]]:
    """The folder of that name, or that of the hub's cache, with its config and those weights in it.

    Raises:
        ValueError: A folder lacks a file or was given a revision; or the hub has no such model, revision or file.
        RuntimeError: The hub cannot be reached or refuses, and its cache lacks a file.
    """
    folder = Path(name)
    if not folder.is_dir():
        return download(name, revision, weights)
    if revision is not None:
        raise ValueError(f"{name!r} is a folder, which has no revision {revision!r}; leave it out")
    facts = {"model": folder.resolve().name}
    for file in ("config.json", weights):
        if file and not (folder / file).is_file():
            raise ValueError(
                f"{folder} holds no {file}; copy the model's repository on the hub whole"
            )
    return folder, facts | weights_facts(folder, weights)


def download(
    repository: str, revision: str | None, weights: str | None
) -> tuple[Path, dict[str, str]]:
    """The folder of the hub's cache with a repository's config and those weights in it.

    Raises:
        ValueError: The hub has no such model, revision or file, or the weights are damaged.
        RuntimeError: The hub cannot be reached or refuses, and its cache lacks a file.
    """
    folder = hub_file(repository, "config.json", revision=revision).parent
    if weights:
        hub_file(repository, weights, revision=folder.name)
    facts = {"model": repository, "revision": folder.name}
    return folder, facts | weights_facts(folder, weights)


def weights_facts(folder: Path, weights: str | None) -> dict[str, str]:
    """The sha256 of a folder's weights; nothing where none are wanted."""
    if weights is None:
        return {}
    tensor_names(folder / weights)  # an error where it is damaged
    return {"sha256": file_digest(folder / weights)}


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json.

    Raises:
        ValueError: It is absent, or holds no JSON object.
    """
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise ValueError(f"{folder / 'config.json'} holds a {type(config).__name__}, not an object")
    return config
