"""Trained models as artifacts: written by a training stage, read by the stages behind it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from flowprior.io import (
    ArtifactError,
    atomic_dir,
    load_tensors,
    open_artifact,
    read_json,
    save_tensors,
    write_json,
    write_manifest,
)

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
    config = read_json(path / "config.json")
    weights = load_tensors(path / f"{kind}.safetensors")
    return Trained(config, weights, artifact.digest, artifact.manifest["provenance"]["inputs"])
