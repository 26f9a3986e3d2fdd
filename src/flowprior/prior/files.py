"""A prior's files: weights as safetensors, sizes as JSON, a manifest with the hash of each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowprior.core import rng
from flowprior.core.artifacts import (
    MANIFEST,
    Artifact,
    atomic_dir,
    open_artifact,
    package_versions,
    write_manifest,
)
from flowprior.core.io import ArtifactError, load_tensors, read_json, save_tensors, write_json
from flowprior.core.sizes import check_model
from flowprior.flow.velocity import CentredVelocity, PreconditionedVelocity, VelocityMLP
from flowprior.prior.fit_report import FitReport, stored_report
from flowprior.prior.projection import Projection

KIND = "flow_prior"
FORMAT_VERSION = 3
"""3 has the covariance of a preconditioned velocity; 2 had its mean alone, and some of the targets; 1 had neither.

All are read.
"""
MADE_BY = "the stage `train_flow` or `FlowPrior.save`"
MEAN, VARIANCES, AXES = "mean", "variances", "axes"


class SavedPrior(NamedTuple):
    """What a prior's files hold; see `flowprior.prior.flow_prior.FlowPrior`."""

    velocity: nn.Module
    projection: Projection
    time_groups: int
    targets: Tensor | None
    fit: FitReport | None
    digest: str


def save_prior(
    path: Path,
    velocity: nn.Module,
    projection: Projection,
    time_groups: int,
    targets: Tensor | None,
    fit: FitReport | None,
    provenance: Mapping[str, object] | None,
    facts: Mapping[str, Any],
) -> None:
    """Write them, atomically; see `FlowPrior.save`.

    Raises:
        ValueError: Something would be lost with what is there, or the velocity is a stranger.
    """
    check_replaceable(path)
    velocity = getattr(velocity, "_orig_mod", velocity)  # of a compiled one
    outer: dict[str, Tensor] = {}
    if isinstance(velocity, CentredVelocity | PreconditionedVelocity):
        outer = dict(velocity.named_buffers(recurse=False))
    network = velocity.velocity if outer else velocity
    if not isinstance(network, VelocityMLP):
        raise ValueError(
            f"a {type(velocity).__name__} cannot be saved: FlowPrior.load builds VelocityMLP only"
        )
    config = {
        "format": FORMAT_VERSION,
        "time_convention": "t = 0 is noise, t = 1 is data",
        "dim": network.dim,
        "width": network.input.out_features,
        "depth": len(network.blocks),
        "lifted": network.lifted,
        "operator": projection.operator,
        "projection_seed": projection.seed,
        "time_groups": time_groups,
    }
    with atomic_dir(path) as out:
        save_tensors(out / "velocity.safetensors", {**network.state_dict(), **outer})
        save_tensors(out / "projection.safetensors", projection.tensors())
        if targets is not None:
            save_tensors(out / "targets.safetensors", {"targets": targets})
        write_json(out / "config.json", config)
        write_manifest(
            out,
            kind=KIND,
            provenance=dict(provenance)
            if provenance
            else {"packages": package_versions("torch", "flowprior")},
            **({} if fit is None else {"fit": fit.to_dict()}),
            **facts,
        )


def load_prior(path: Path) -> SavedPrior:
    """Read them to the CPU.

    Raises:
        ArtifactError: They are absent, damaged, or of a version that this code does not know.
    """
    with torch.inference_mode(False), rng.plain_defaults():
        return _load(path)


def _load(path: Path) -> SavedPrior:
    artifact = open_artifact(path, KIND, MADE_BY)
    root = artifact.path
    config = read_json(artifact.file("config.json"))
    found = config.get("format") if isinstance(config, dict) else None
    if found not in range(1, FORMAT_VERSION + 1):
        raise ArtifactError(
            f"{root / 'config.json'} has format {found!r}, this flowprior reads 1 to {FORMAT_VERSION}; "
            "install the flowprior that wrote it, or train the prior again"
        )
    tensors = load_tensors(artifact.file("projection.safetensors"))
    weights = load_tensors(artifact.file("velocity.safetensors"))
    targets = _targets(artifact)
    try:
        sizes = (config["dim"], config["width"], config["depth"], None, bool(config.get("lifted")))
        outer = [weights.pop(name) for name in (MEAN, VARIANCES, AXES) if name in weights]
        check_model(lambda: VelocityMLP(*sizes), weights)
        projection = Projection(
            tensors["matrix"],
            float(tensors["scale"]),
            str(config["operator"]),
            int(config["projection_seed"]),
        )
        with rng.scoped(0, "load"):
            network = VelocityMLP(*sizes)
        network.load_state_dict(weights)
        velocity: nn.Module = network
        if outer:
            velocity = (PreconditionedVelocity if len(outer) > 1 else CentredVelocity)(
                network, *outer
            )
        groups = int(config["time_groups"])
        if groups < 1 or projection.out_dim != network.dim:
            raise ValueError("its sizes do not fit one another")
        if targets is not None and (targets.ndim != 2 or targets.shape[1] != network.dim):
            raise ValueError(f"its targets have the shape {tuple(targets.shape)}")
        fit = stored_report(artifact.manifest.get("fit"))
    except Exception as error:  # whatever a wrong config provokes
        raise ArtifactError(f"{root} does not hold the prior it describes: {error}") from None
    return SavedPrior(velocity, projection, groups, targets, fit, artifact.digest)


def check_replaceable(path: Path) -> None:
    """Whether nothing is lost with what is there: an empty directory, or a saved prior and nothing else.

    Raises:
        ValueError: Something would be; says what.
    """
    if not path.exists():
        return
    manifest: Any = None
    if path.is_dir():
        found = {file.name for file in path.iterdir()}
        if not found:
            return
        try:
            manifest = read_json(path / MANIFEST)
        except ArtifactError:
            manifest = None
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise ValueError(f"{path} holds something other than a flow prior; name another directory")
    strangers = sorted(found - {MANIFEST, *manifest.get("files", {})})
    if strangers:
        raise ValueError(
            f"{path} holds a flow prior and {strangers[0]}, which would be lost; move it, or name another directory"
        )


def _targets(artifact: Artifact) -> Tensor | None:
    if "targets.safetensors" not in artifact.manifest.get("files", {}):
        return None
    found = load_tensors(artifact.file("targets.safetensors")).get("targets")
    if found is None or not torch.is_floating_point(found):
        raise ArtifactError(f"{artifact.path / 'targets.safetensors'} holds no targets")
    return found
