"""`FlowPrior`, in one module: a frozen flow over target features, as a regulariser, a sampler and a density."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowprior.core import rng
from flowprior.core.artifacts import (
    MANIFEST,
    atomic_dir,
    open_artifact,
    package_versions,
    write_manifest,
)
from flowprior.core.io import ArtifactError, load_tensors, read_json, save_tensors, write_json
from flowprior.core.optim import adamw, moving_average, schedule
from flowprior.core.sizes import check_model
from flowprior.flow.likelihood import log_density
from flowprior.flow.losses import grouped_loss
from flowprior.flow.ode import integrate
from flowprior.flow.velocity import VelocityMLP
from flowprior.prior.projection import Operator, Projection
from flowprior.stats.moments import Moments

KIND = "flow_prior"
FORMAT_VERSION = 1
MADE_BY = "the stage `train_flow` or `FlowPrior.save`"


class FlowPrior(nn.Module):
    """A flow from N(0, I) to projected target features, with its parameters frozen.

    It is a module without anything to learn: move it with `.to(device)`, leave it out of the optimiser. Latents may
    have any leading shape, `[..., d]`, and live in the space of the projected features. Works under autocast, DDP and
    torch.compile.

    Args:
        velocity: The trained field.
        projection: From features to the space of the latents, with its scale.
        time_groups: Vectors share times in at most so many groups inside `alignment_loss`.

    Attributes:
        digest: Fixes every byte of the artifact it was loaded from; None for one that was not
            loaded.
    """

    def __init__(
        self, velocity: VelocityMLP, projection: Projection, time_groups: int = 64
    ) -> None:
        super().__init__()
        if projection.out_dim != velocity.dim:
            raise ValueError(
                f"the projection gives {projection.out_dim} channels, the velocity takes {velocity.dim}"
            )
        if time_groups < 1:
            raise ValueError(f"time_groups must be at least 1, found {time_groups}")
        self.velocity = velocity
        self.projection = projection
        self.time_groups = time_groups
        self.digest: str | None = None
        self.requires_grad_(False)

    @property
    def dim(self) -> int:
        """Channels d of a latent."""
        return self.velocity.dim

    def project(self, features: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch d"]:
        """Features in the space of the latents: projected and scaled."""
        out: Tensor = self.projection(features)
        return out

    def alignment_loss(
        self,
        latents: Float[Tensor, "*batch d"],
        generator: torch.Generator | None = None,
        num_draws: int = 4,
    ) -> Float[Tensor, ""]:
        """Mean over vectors, dims and draws of the alignment loss; Eq. (5), arXiv:2506.05240.

        Each draw has fresh noise for every vector and fresh stratified times for groups of vectors.
        The gradient reaches the latents only.

        Args:
            latents: What to align.
            generator: Draws noise and times; torch's global stream by default.
            num_draws: Draws for each vector; more lower the variance of the estimate.

        Raises:
            ValueError: The latents have another number of channels, there are none, or `num_draws`
                is not positive.
        """
        vectors = self._vectors(latents)
        if not len(vectors):
            raise ValueError("there are no latents to align: a leading axis is empty")
        if num_draws < 1:
            raise ValueError(f"num_draws must be at least 1, found {num_draws}")
        tiled = vectors.repeat(num_draws, 1)
        return grouped_loss(self.velocity, tiled, self.time_groups, generator).mean()

    def nll(
        self,
        latents: Float[Tensor, "*batch d"],
        generator: torch.Generator | None = None,
        chunk: int = 4096,
    ) -> Float[Tensor, "*batch"]:
        """Negative log-density in nats per vector, summed over dims; Eq. (4), arXiv:2506.05240.

        Solves the ODE; without gradient. The divergence is exact up to 64 dims and estimated with
        one probe above.

        Args:
            latents: Where to evaluate.
            generator: Draws the probes.
            chunk: Vectors solved for at once; bounds the memory.
        """
        vectors = self._vectors(latents).detach()
        if not vectors.isfinite().all():
            raise ValueError("the latents hold NaN or infinite values")
        parts = [
            -log_density(self.velocity, part, generator=generator) for part in vectors.split(chunk)
        ]
        return torch.cat(parts).view(latents.shape[:-1])

    @torch.no_grad()
    def sample(
        self, n: int, generator: torch.Generator | None = None, num_steps: int = 50
    ) -> Float[Tensor, "n d"]:
        """Draw `n` vectors by Heun's method from t = 0 to t = 1 in `num_steps` steps."""
        like = self.projection.matrix
        return integrate(self.velocity, rng.normal((n, self.dim), like, generator), num_steps)

    def _vectors(self, latents: Tensor) -> Float[Tensor, "n d"]:
        if latents.shape[-1] != self.dim:
            raise ValueError(
                f"latents have {latents.shape[-1]} channels, this flow prior models {self.dim}; "
                "give the autoencoder as many, or fit a prior with `dim` to match"
            )
        return latents.reshape(-1, self.dim).to(self.projection.matrix.dtype)

    @classmethod
    def fit(
        cls,
        features: Any,
        dim: int | None = None,
        *,
        operator: Operator = "random",
        steps: int = 1500,
        seed: int = 0,
        width: int = 256,
        depth: int = 4,
        batch_vectors: int = 1024,
        time_groups: int = 64,
        lr: float = 1e-3,
        ema_decay: float = 0.999,
        device: torch.device | str | None = None,
    ) -> "FlowPrior":
        """Train a flow prior on features that fit into memory; the pipeline's `train_flow` is the tool for more.

        Args:
            features: Tensor or array [..., D].
            dim: Channels d of the latents to align; D (no projection) by default.
            operator: How to get from D to d channels.
            steps: Optimiser steps (AdamW, cosine schedule, moving average of the weights).
            seed: Fixes projection, initialisation and draws.
            width: Hidden width of the velocity.
            depth: Its residual blocks.
            batch_vectors: Vectors a step.
            time_groups: Groups of a batch that share a time.
            lr: Peak learning rate.
            ema_decay: Decay of the moving average.
            device: Where to train; that of the features by default.

        Raises:
            ValueError: Features that are empty, not finite or constant, or `dim` > D.
        """
        tensor = torch.as_tensor(features).detach()
        if tensor.ndim < 2 or not tensor.numel():
            raise ValueError(
                f"features must be [..., D] and not empty, found {tuple(tensor.shape)}"
            )
        tensor = tensor.reshape(-1, tensor.shape[-1]).float()
        tensor = tensor if device is None else tensor.to(device)
        for name, count in (("steps", steps), ("batch_vectors", batch_vectors)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, found {count}")
        if dim is not None and dim > tensor.shape[-1]:
            raise ValueError(
                f"cannot project {tensor.shape[-1]} channels to {dim}; take a dim from 1 to {tensor.shape[-1]}"
            )
        moments = Moments(tensor.shape[-1])
        moments.update(tensor)
        projection = Projection.fit(
            moments, tensor.shape[-1] if dim is None else dim, operator, seed
        )
        targets = projection.to(tensor.device)(tensor)
        with rng.scoped(seed, "fit", "init"):
            velocity = VelocityMLP(projection.out_dim, width, depth).to(tensor.device)
        optimizer = adamw(velocity, lr, (0.9, 0.95), weight_decay=1e-4)
        rates = schedule(optimizer, "cosine", steps, warmup_steps=min(100, steps // 10))
        averaged = moving_average(velocity, ema_decay)
        for step in range(steps):
            draw = rng.generator(seed, "fit", step)
            rows = torch.randint(len(targets), (batch_vectors,), generator=draw)
            loss = grouped_loss(
                velocity, targets[rows.to(targets.device)], time_groups, draw
            ).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(velocity.parameters(), 1.0)
            if not torch.isfinite(norm):
                raise ValueError(f"the flow matching loss diverged at step {step}; lower `lr`")
            optimizer.step()
            rates.step()
            averaged.update_parameters(velocity)
        velocity.load_state_dict(averaged.module.state_dict())
        velocity.zero_grad(set_to_none=True)
        return cls(velocity, projection, time_groups)

    def save(
        self, path: str | Path, provenance: dict[str, object] | None = None, **facts: object
    ) -> None:
        """Write the prior to a directory, atomically, in the place of one that was saved there before.

        Args:
            path: A directory that does not exist, is empty, or holds a saved prior.
            provenance: What it was made from, for the manifest.
            facts: Further entries of the manifest.

        Raises:
            ValueError: The directory holds something else.
        """
        if Path(path).exists() and not _may_replace(Path(path)):
            raise ValueError(
                f"{path} holds something other than a flow prior; name another directory"
            )
        config = {
            "format": FORMAT_VERSION,
            "time_convention": "t = 0 is noise, t = 1 is data",
            "dim": self.dim,
            "width": self.velocity.input.out_features,
            "depth": len(self.velocity.blocks),
            "operator": self.projection.operator,
            "projection_seed": self.projection.seed,
            "time_groups": self.time_groups,
        }
        with atomic_dir(Path(path)) as out:
            save_tensors(out / "velocity.safetensors", self.velocity.state_dict())
            save_tensors(out / "projection.safetensors", self.projection.state_dict())
            write_json(out / "config.json", config)
            write_manifest(
                out,
                kind=KIND,
                provenance=provenance or {"packages": package_versions("torch", "flowprior")},
                **facts,
            )

    @classmethod
    def load(cls, path: str | Path) -> "FlowPrior":
        """Read a saved prior to the CPU.

        Raises:
            ArtifactError: It is absent, damaged, or of a version that this code does not know.
        """
        artifact = open_artifact(Path(path), KIND, MADE_BY)
        root = artifact.path
        config = read_json(artifact.file("config.json"))
        found = config.get("format") if isinstance(config, dict) else None
        if found != FORMAT_VERSION:
            raise ArtifactError(
                f"{root / 'config.json'} has format {found!r}, this flowprior reads {FORMAT_VERSION}; "
                "install the flowprior that wrote it, or train the prior again"
            )
        tensors = load_tensors(artifact.file("projection.safetensors"))
        weights = load_tensors(artifact.file("velocity.safetensors"))
        try:
            sizes = (config["dim"], config["width"], config["depth"])
            check_model(lambda: VelocityMLP(*sizes), weights)
            projection = Projection(
                tensors["matrix"],
                float(tensors["scale"]),
                str(config["operator"]),
                int(config["projection_seed"]),
            )
            with rng.scoped(0, "load"):
                velocity = VelocityMLP(*sizes)
            velocity.load_state_dict(weights)
            prior = cls(velocity, projection, config["time_groups"])
        except Exception as error:  # whatever a wrong config provokes
            raise ArtifactError(f"{root} does not hold the prior it describes: {error}") from None
        prior.digest = artifact.digest
        return prior


def _may_replace(path: Path) -> bool:
    """Whether nothing is lost with what is there: an empty directory or a saved prior."""
    if not path.is_dir():
        return False
    if not any(path.iterdir()):
        return True
    try:
        manifest = read_json(path / MANIFEST)
    except ArtifactError:
        return False
    return isinstance(manifest, dict) and manifest.get("kind") == KIND
