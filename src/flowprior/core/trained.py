"""Trained models as artifacts: written by a training stage, read by the stages behind it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from flowprior.core.artifacts import MANIFEST, atomic_dir, open_artifact, write_manifest
from flowprior.core.io import ArtifactError, load_tensors, read_json, save_tensors, write_json
from flowprior.core.sizes import check_model

Module = TypeVar("Module", bound=nn.Module)


class Trained(NamedTuple):
    """What a training stage left.

    Attributes:
        config: Sizes and whatever else the model is built from.
        weights: Its state.
        digest: Fixes every byte.
        inputs: Digests of what it was trained on.
    """

    config: dict[str, Any]
    weights: dict[str, torch.Tensor]
    digest: str
    inputs: dict[str, str]

    def into(self, module: Module, where: Path) -> Module:
        """Load the weights into a module built from the config, ready to use: in eval mode and frozen.

        Raises:
            ArtifactError: They do not fit.
        """
        try:
            module.load_state_dict(self.weights)
        except RuntimeError as error:
            raise ArtifactError(f"{where} does not hold the model it describes: {error}") from None
        return module.eval().requires_grad_(False)

    def build(self, make: Callable[[dict[str, Any]], Module], where: Path) -> Module:
        """Build a module from the config and load the weights into it; see `into`.

        A config of a stranger may ask for a module that no memory holds: it is first built without.

        Args:
            make: From the config to a module.
            where: The folder, for messages.

        Raises:
            ArtifactError: Config and weights do not fit, or the config is not one.
        """
        try:
            _check_sizes(self.config, sum(tensor.numel() for tensor in self.weights.values()))
            check_model(lambda: make(self.config), self.weights)
        except Exception as error:  # whatever a wrong config provokes
            raise ArtifactError(f"{where} does not hold the model it describes: {error}") from None
        return self.into(make(self.config), where)


def _check_sizes(config: object, most: int) -> None:
    """No size of a model is negative or exceeds the number of its weights: the meta device is not free of all cost.

    `options` are a plugin's own, and need not be sizes.
    """
    if isinstance(config, dict):
        config = [value for key, value in config.items() if key != "options"]
    if isinstance(config, list):
        for value in config:
            _check_sizes(value, most)
    elif isinstance(config, int) and not 0 <= config <= most:
        raise ValueError(f"a size of {config} with {most} weights")


def save_trained(
    path: Path,
    kind: str,
    module: nn.Module,
    config: Mapping[str, Any],
    provenance: Mapping[str, object],
) -> None:
    """Write a model's weights and config, atomically."""
    with atomic_dir(path) as out:
        save_tensors(out / f"{kind}.safetensors", module.state_dict())
        write_json(out / "config.json", dict(config))
        write_manifest(out, kind=kind, provenance=provenance)


def load_trained(path: Path, kind: str, made_by: str) -> Trained:
    """Verify and read what `save_trained` wrote.

    Raises:
        ArtifactError: It cannot be trusted.
    """
    artifact = open_artifact(path, kind, made_by)
    config = read_json(artifact.file("config.json"))
    weights = load_tensors(artifact.file(f"{kind}.safetensors"))
    match artifact.manifest.get("provenance"), config:
        case {"inputs": dict(inputs)}, dict():
            return Trained(config, weights, artifact.digest, inputs)
    raise ArtifactError(f"{path} has no inputs in its {MANIFEST}, or its config.json is no object")
