"""`FlowPrior`: a frozen flow over target features; one module, so that its whole face stands together."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor, nn

from flowprior.core import rng
from flowprior.core.frozen import Frozen
from flowprior.flow.likelihood import EXACT_DIVERGENCE_MAX_DIM, log_density
from flowprior.flow.losses import grouped_loss
from flowprior.flow.ode import integrate
from flowprior.prior.files import load_prior, save_prior
from flowprior.prior.fit_report import FitReport
from flowprior.prior.fitting import FitSettings, fit_flow
from flowprior.prior.layout import as_latents, channels_last, check_not_empty
from flowprior.prior.projection import Operator, Projection

if TYPE_CHECKING:
    from flowprior.alignment.term import AlignmentTerm
    from flowprior.check.result import LatentCheck


class FlowPrior(Frozen):
    """A flow from N(0, I) to projected target features that nothing trains.

    Called, it is the alignment loss. It has no parameters: an optimiser over a model that holds it, `requires_grad_`,
    `apply`, `train` and `half` leave it as it is, and the model's `state_dict` is without it unless `persistent` is
    set. Move it with `.to(device)`. Latents live in the space of the projected features. Works under autocast, DDP and
    torch.compile.

    Args:
        velocity: The trained field, a module with the attribute `dim`.
        projection: From features to the space of the latents, with its scale.
        time_groups: Vectors share times in at most so many groups inside `alignment_loss`.
        targets: Some of the targets, [n, d], for what compares with them.
        fitted: How well it fits.

    Attributes:
        fitted: What `fit` found of how well the flow fits; None for fewer than 200 vectors, without a held-out part,
            and for a flow that was trained otherwise.
        digest: Fixes every byte of the artifact it was loaded from; None for one that was not
            loaded.

    Raises:
        ValueError: The projection and the velocity have different dims, or `time_groups` is below 1.
    """

    fitted: FitReport | None = None

    def __init__(
        self,
        velocity: nn.Module,
        projection: Projection,
        time_groups: int = 64,
        targets: Float[Tensor, "n d"] | None = None,
        fitted: FitReport | None = None,
    ) -> None:
        dim = int(velocity.dim)  # type: ignore[arg-type]
        if projection.out_dim != dim:
            raise ValueError(
                f"the projection gives {projection.out_dim} channels, the velocity takes {dim}"
            )
        if time_groups < 1:
            raise ValueError(f"time_groups must be at least 1, found {time_groups}")
        super().__init__({"velocity": velocity, "projection": projection})
        self.time_groups = time_groups
        self.targets = targets
        self.fitted = fitted
        self.digest: str | None = None

    def extra_repr(self) -> str:
        """What `print` shows."""
        fit = "" if self.fitted is None else f", fit={self.fitted.verdict}"
        return f"dim={self.dim}, operator={self.projection.operator}{fit}"

    @property
    def velocity(self) -> nn.Module:
        """The field v(x, t), x [..., d]."""
        return self._parts["velocity"]

    @property
    def projection(self) -> Projection:
        """From features to the space of the latents."""
        projection = self._parts["projection"]
        assert isinstance(projection, Projection)
        return projection

    @property
    def dim(self) -> int:
        """Channels d of a latent."""
        return self.projection.out_dim

    def project(self, features: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch d"]:
        """Features in the space of the latents: projected and scaled."""
        out: Tensor = self.projection(features)
        return out

    def forward(self, latents: Tensor, **options: Any) -> Float[Tensor, ""]:
        """The alignment loss, see there."""
        return self.alignment_loss(latents, **options)

    def alignment_loss(
        self,
        latents: Tensor,
        generator: torch.Generator | None = None,
        num_draws: int = 4,
        channel_dim: int | None = None,
    ) -> Float[Tensor, ""]:
        """Mean over vectors, dims and draws of the alignment loss; Eq. (5), arXiv:2506.05240.

        Each draw has fresh noise for every vector and fresh stratified times for groups of vectors.
        The gradient reaches the latents only.

        Args:
            latents: What to align, [..., d], or with the channels on the axis `channel_dim`.
            generator: Draws noise and times; torch's global stream by default.
            num_draws: Draws for each vector; more lower the variance of the estimate.
            channel_dim: The axis of the channels; needed where it is not the last, or not clear.

        Raises:
            ValueError: The latents have another number of channels, their layout could be read in two ways, there are
                none, or `num_draws` is not positive.
        """
        vectors = self._vectors(latents, channel_dim)
        check_not_empty(vectors)
        if num_draws < 1:
            raise ValueError(f"num_draws must be at least 1, found {num_draws}")
        tiled = vectors.repeat(num_draws, 1)
        return grouped_loss(self.velocity, tiled, self.time_groups, generator).mean()

    def objective(
        self,
        name: str = "flow_prior",
        *,
        channel_dim: int | None = None,
        weight: float = 1.0,
        **settings: Any,
    ) -> "AlignmentTerm":
        """A term for a loss, by the name of an objective; switch objectives by the name alone.

            pull = prior.objective("dmd", channel_dim=1, weight=0.1)
            loss = reconstruction + pull(latents)
            ...
            optimizer.step()
            pull.follow(latents)

        Args:
            name: Of `flowprior.alignment.names.OBJECTIVES`, as in the pipeline's `align.objective`.
            channel_dim: The axis of the latents' channels; by default the last, if no other could be meant.
            weight: Factor on the objective: 0.01 is the paper's, for objectives that look for dense places; those that
                compare distributions bear 0.1.
            settings: Of `flowprior.alignment.term.alignment_term`.

        Raises:
            ValueError: An unknown name, or a setting that the objective cannot use.
        """
        # By name, so that the stages that only fit or ask a prior do not depend on the room above.
        term = import_module("flowprior.alignment.term").alignment_term
        made: AlignmentTerm = term(self, name, channel_dim=channel_dim, weight=weight, **settings)
        return made

    def nll(
        self,
        latents: Tensor | ndarray,
        generator: torch.Generator | None = None,
        chunk: int = 4096,
        channel_dim: int | None = None,
        exact_max_dim: int = EXACT_DIVERGENCE_MAX_DIM,
    ) -> Float[Tensor, "*batch"]:
        """Negative log-density in nats per vector, summed over dims; Eq. (4), arXiv:2506.05240.

        Solves the ODE; without gradient.

        Args:
            latents: Where to evaluate, [..., d], or with the channels on the axis `channel_dim`.
            generator: Draws the probes; by default they are the same at every call, and never of the global stream.
            chunk: Vectors solved for at once; bounds the memory.
            channel_dim: The axis of the channels; needed where it is not the last, or not clear.
            exact_max_dim: Dims up to which the divergence is exact, which costs as many times one probe, by which it is
                estimated above (unbiased).

        Returns:
            One value for each vector, in the latents' leading shape.

        Raises:
            ValueError: As for the alignment loss, or values that are not finite.
        """
        last = channels_last(as_latents(latents), self.dim, channel_dim)
        vectors = self._vectors(last, -1).detach()
        if not vectors.isfinite().all():
            raise ValueError("the latents hold NaN or infinite values")
        draws = rng.generator(0, "nll") if generator is None else generator
        with torch.autocast(vectors.device.type, enabled=False), rng.plain_defaults():
            parts = [
                -log_density(self.velocity, part, generator=draws, exact_max_dim=exact_max_dim)
                for part in vectors.split(chunk)
            ]
        return torch.cat(parts).view(last.shape[:-1])

    def check(
        self,
        latents: Tensor | ndarray,
        *,
        channel_dim: int | None = None,
        targets: Float[Tensor, "m d"] | None = None,
        seed: int = 0,
    ) -> "LatentCheck":
        """Compare latents with targets: one word, the reasons, and every figure beside what fresh targets get.

            check = prior.check(latents)

        The word is good, narrow, wide, shifted, collapsed (modes are missing, whatever the scale and place), low rank,
        or other shape. The first check of a prior takes some seconds, further ones less. Nothing reaches the latents'
        gradient or the global random stream.

        Args:
            latents: At least 50, [..., d], or with the channels on the axis `channel_dim`.
            channel_dim: The axis of the channels; needed where it is not the last, or not clear.
            targets: What to compare with, at least 100; by default those that the prior keeps, and where it keeps none,
                samples of its flow.
            seed: Of the cuts and tests; equal seeds give equal checks.

        Raises:
            ValueError: Too few latents or targets, of another dim, or with values that are not finite.
        """
        found: LatentCheck = import_module("flowprior.check.latents").check_latents(
            self, latents, channel_dim=channel_dim, targets=targets, seed=seed
        )
        return found

    @torch.no_grad()
    def sample(
        self, n: int, generator: torch.Generator | None = None, num_steps: int = 50
    ) -> Float[Tensor, "n d"]:
        """Draw `n` vectors by Heun's method from t = 0 to t = 1 in `num_steps` steps that shrink towards the end."""
        noise = rng.normal((n, self.dim), self.projection.matrix, generator)
        return integrate(self.velocity, noise, num_steps, slowing=True)

    def _vectors(self, latents: Tensor, channel_dim: int | None) -> Float[Tensor, "n d"]:
        last = channels_last(latents, self.dim, channel_dim)
        return last.reshape(-1, self.dim).to(self.projection.matrix.dtype)

    @classmethod
    def fit(
        cls,
        features: Any,
        dim: int | None = None,
        *,
        channel_dim: int | None = None,
        operator: Operator = "random",
        steps: int = 2000,
        seed: int = 0,
        width: int = 256,
        depth: int = 3,
        batch_vectors: int = 1024,
        time_groups: int = 64,
        lr: float = 1e-3,
        ema_decay: float = 0.999,
        device: torch.device | str | None = None,
        hold_out: bool = True,
        progress: bool | None = None,
    ) -> "FlowPrior":
        """Train a flow prior on features, and measure it on a tenth of them that are held out: `prior.fitted`.

        The flow knows mean and covariance of the targets from the start, and learns what differs from a Gaussian. It
        keeps the last weights whose held-out loss is within 0.5% of the lowest, and stops where it has risen for long.

        Args:
            features: Tensor, array or data frame of numbers, [..., D]; or an iterable of such batches, which is read
                once and of which a random sample of at most 512 MiB is kept.
            dim: Channels d of the latents to align; D (no projection) by default.
            channel_dim: The axis of the features' channels D; needed where it is not the last.
            operator: How to get from D to d channels.
            steps: Optimiser steps, at most (AdamW, cosine schedule, moving average of the weights).
            seed: Fixes projection, initialisation and draws.
            width: Hidden width of the velocity.
            depth: Its residual blocks.
            batch_vectors: Vectors a step.
            time_groups: Groups of a batch that share a time.
            lr: Peak learning rate.
            ema_decay: Decay of the moving average.
            device: Where to train; that of the features by default.
            hold_out: Whether to hold out a tenth of the vectors, at most 2000, if these are 20 or more; without,
                nothing stops early or is measured.
            progress: Whether to show rate, time left and the outcome on standard error; by default on a terminal.

        Raises:
            ValueError: Features that are empty, not finite, constant or no numbers, whose channels could be on two
                axes, `dim` > D, or a setting out of range.
        """
        settings = FitSettings(
            steps, seed, width, depth, batch_vectors, time_groups, lr, ema_decay, hold_out
        )
        made = fit_flow(features, dim, operator, settings, device, progress, channel_dim)
        return cls(made.velocity, made.projection, time_groups, made.targets, made.report)

    def save(
        self, path: str | Path, provenance: dict[str, object] | None = None, **facts: object
    ) -> None:
        """Write the prior to a directory, atomically, in the place of one that was saved there before.

        Args:
            path: A directory that does not exist, is empty, or holds a saved prior and nothing else.
            provenance: What it was made from, for the manifest.
            facts: Further entries of the manifest.

        Raises:
            ValueError: The directory holds something else, or the prior's velocity is not one of this package.
        """
        save_prior(
            Path(path).expanduser(),
            self.velocity,
            self.projection,
            self.time_groups,
            self.targets,
            self.fitted,
            provenance,
            facts,
        )

    @classmethod
    def load(cls, path: str | Path) -> "FlowPrior":
        """Read a saved prior to the CPU.

        Raises:
            ArtifactError: It is absent, damaged, or of a version that this code does not know.
        """
        saved = load_prior(Path(path).expanduser())
        prior = cls(saved.velocity, saved.projection, saved.time_groups, saved.targets, saved.fit)
        prior.digest = saved.digest
        return prior

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, subfolder: str = "", **options: Any
    ) -> "FlowPrior":
        """Read a prior from the hub of Hugging Face, or from a folder, to the CPU; needs the extra `hub`.

        Every file is held against the hashes of the prior's manifest; nothing in them is run.

        Args:
            name: A repository of the hub (`organisation/name`), or a folder, which comes first.
            subfolder: Where in it the prior lies.
            options: revision (branch, tag or commit), token, cache_dir, force_download, local_files_only.

        Raises:
            ValueError: There is no such repository or revision, or it holds no prior; an `ArtifactError` if what it
                holds is damaged, or of a version that this code does not know.
            RuntimeError: The hub cannot be reached or refuses, and its cache lacks a file.
            ModuleNotFoundError: huggingface_hub is not installed.
        """
        fetch = import_module("flowprior.core.sharing").fetch
        return cls.load(fetch(name, [subfolder], **options) / subfolder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        source: str,
        license: str | None = None,
        with_targets: bool = True,
        **options: Any,
    ) -> str:
        """Publish the prior on the hub of Hugging Face, with a page that tells what it is and how well it fits.

        Args:
            repo_id: The repository (`organisation/name`), made if there is none; its README.md is written anew.
            source: What the features are, for the page: "patch tokens of DINOv2 ViT-B/14, ImageNet train".
            license: The hub's word for the licence: `apache-2.0`, `cc-by-nc-4.0`, `other`.
            with_targets: Whether the targets that the prior keeps, up to 20 000 projected features, go along. Without
                them `check` compares with samples of the flow. The history of a repository keeps what it had.
            options: private, revision (a branch), token, commit_message, create_pr.

        Returns:
            The address of the commit, or of the proposal.

        Raises:
            ValueError: The velocity is not one of this package, or `repo_id` is no name.
            RuntimeError: The hub cannot be reached or refuses.
            ModuleNotFoundError: huggingface_hub is not installed.
        """
        pushed: str = import_module("flowprior.prior.publishing").push_prior(
            self, repo_id, source, license, with_targets, options
        )
        return pushed
