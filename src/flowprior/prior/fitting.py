"""Fitting a flow to features that are at hand, or that arrive in batches."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowprior.core import rng
from flowprior.core.optim import adamw, moving_average, schedule
from flowprior.core.progress import Progress, tell
from flowprior.flow.path import group_vectors, stratified_times
from flowprior.flow.velocity import PreconditionedVelocity, VelocityMLP
from flowprior.prior.features import gathered
from flowprior.prior.fit_report import FitReport, fit_report
from flowprior.prior.projection import Operator, Projection
from flowprior.stats.moments import Moments
from flowprior.stats.two_sample import LEAST

KEPT_TARGETS = 20_000
"""Targets that a prior keeps, drawn at random, for what compares latents with them."""
NARROWEST = 1e-6
"""The least variance of a principal axis, over the mean of all: features that lie in a plane have a density too."""
LOOKS = 30
"""At the held-out loss, over a whole fit."""
SAME_LOSS = 1.005
"""Ratio of held-out losses up to which the later weights, which are averaged over more steps, are as good."""
PATIENCE = 8
"""Looks at a higher held-out loss, after which a fit stops."""
LEAST_SHARE = 3
"""One in so many of the steps are made before a fit may stop."""
HELD_OUT = 2000
"""Targets that are held out, at most: a tenth of them."""
LOOK_DRAWS = 4


class FittedFlow(NamedTuple):
    """What a fit leaves.

    Attributes:
        velocity: The field, trained.
        projection: From features to targets.
        targets: At most `KEPT_TARGETS` of them, [n, d].
        report: How well it fits; None where too few could be held out.
    """

    velocity: PreconditionedVelocity
    projection: Projection
    targets: Tensor
    report: FitReport | None


class FitSettings(NamedTuple):
    """How a flow is trained; see the arguments of `FlowPrior.fit`."""

    steps: int
    seed: int
    width: int
    depth: int
    batch_vectors: int
    time_groups: int
    lr: float | int
    ema_decay: float | int
    hold_out: bool

    def check(self) -> None:
        """Whether all are in range.

        Raises:
            ValueError: One is not; says which, and the range.
        """
        for name in ("steps", "width", "depth", "batch_vectors", "time_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, found {self.lr}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be from 0 to below 1, found {self.ema_decay}")


def fit_flow(
    features: Any,
    dim: int | None,
    operator: Operator,
    settings: FitSettings,
    device: torch.device | str | None,
    progress: bool | None,
    channel_dim: int | None = None,
) -> FittedFlow:
    """Project features and train a flow on them; see `FlowPrior.fit` for arguments and errors.

    Raises:
        ValueError: See there.
    """
    settings.check()
    seed = settings.seed
    with torch.inference_mode(False), torch.enable_grad(), rng.plain_defaults():
        found = gathered(features, device, seed, channel_dim)
        channels = found.vectors.shape[1]
        if dim is not None and dim > channels:
            raise ValueError(
                f"the features have {channels} channels and dim is {dim}: targets would fill {channels} of {dim} dims, "
                f"and nothing else could look like them. Fit with dim={channels} and pull as many of the latents' "
                f"channels, latents[..., :{channels}], or take features of {dim} channels and more, for instance "
                "several layers side by side"
            )
        projection = Projection.fit(found.moments, channels if dim is None else dim, operator, seed)
        targets = projection.to(found.vectors.device)(found.vectors)
        order = torch.randperm(len(targets), generator=rng.generator(seed, "fit", "kept"))
        order = order.to(targets.device)
        num = min(HELD_OUT, len(targets) // 10) if settings.hold_out else 0
        num = num if num >= LEAST else 0  # fewer would say nothing
        held_out, learned = targets[order[:num]], targets[order[num:]]  # in no order
        velocity, steps = _train(learned, held_out, settings, progress)
        report = None
        if num:
            report = fit_report(velocity, learned, held_out, settings.time_groups, steps, seed)
            tell(f"flow prior: {report}", progress)
        kept = targets[order[:KEPT_TARGETS]].cpu()
    return FittedFlow(velocity, projection, kept, report)


def _train(
    targets: Float[Tensor, "n d"],
    held_out: Float[Tensor, "m d"],
    settings: FitSettings,
    progress: bool | None,
) -> tuple[PreconditionedVelocity, int]:
    """Flow matching, until the held-out loss stops falling; the velocity, and the steps that it took."""
    steps, seed = settings.steps, settings.seed
    velocity = _untrained(targets, settings)
    network = velocity.velocity
    optimizer = adamw(network, settings.lr, (0.9, 0.95), weight_decay=1e-4)
    rates = schedule(optimizer, "cosine", steps, warmup_steps=min(100, steps // 10))
    averaged = moving_average(network, settings.ema_decay)
    shown = Progress("flow prior", steps, progress)
    every = max(10, steps // LOOKS)
    best = _Best()
    if len(held_out):  # the Gaussian of the targets, which may be all that there is to know
        best.look(0, network, _held_out_loss(velocity, network, held_out, settings))
    done = 0
    for step in range(steps):
        draw = rng.generator(seed, "fit", step)
        rows = torch.randint(len(targets), (settings.batch_vectors,), generator=draw)
        vectors = targets[rows.to(targets.device)]
        loss = _loss(velocity, vectors, settings.time_groups, draw)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise ValueError(f"the flow matching loss diverged at step {step}; lower `lr`")
        optimizer.step()
        rates.step()
        averaged.update_parameters(network)
        done = step + 1
        if len(held_out) and (done % every == 0 or done == steps):
            held = _held_out_loss(velocity, averaged.module, held_out, settings)
            best.look(done, averaged.module, held)
            shown.at(done, f"weighted held-out loss {held:.4f}")
            if best.since >= PATIENCE and LEAST_SHARE * done >= steps:
                break
        else:
            shown.at(done)
    shown.end()
    network.load_state_dict(best.state or averaged.module.state_dict())
    network.zero_grad(set_to_none=True)
    return velocity, best.step if best.state else done


class _Best:
    """The last weights whose held-out loss is the lowest so far, but for noise, and looks since."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}
        self.step = 0
        self.since = 0
        self._least = float("inf")

    def look(self, step: int, network: nn.Module, loss: float) -> None:
        """At the weights after a step."""
        self.since += 1
        self._least = min(self._least, loss)
        if loss <= SAME_LOSS * self._least:
            self.since, self.step = 0, step
            self.state = {k: v.clone() for k, v in network.state_dict().items()}


def _untrained(targets: Float[Tensor, "n d"], settings: FitSettings) -> PreconditionedVelocity:
    """A velocity that knows mean and covariance of the targets."""
    moments = Moments(targets.shape[1])
    moments.update(targets)
    variances, axes = torch.linalg.eigh(moments.covariance)
    variances = variances.clamp(min=NARROWEST * float(variances.mean()))
    with rng.scoped(settings.seed, "fit", "init"):
        network = VelocityMLP(targets.shape[1], settings.width, settings.depth, lifted=True)
    facts = (part.float().contiguous() for part in (moments.mean, variances, axes))
    return PreconditionedVelocity(network, *facts).to(targets.device)


def _loss(
    velocity: PreconditionedVelocity, vectors: Tensor, time_groups: int, draw: torch.Generator
) -> Float[Tensor, ""]:
    """With fresh noise, and times that groups of vectors share; vectors of padding do not count."""
    noise = rng.normal_like(vectors, draw)
    data_groups = group_vectors(vectors, time_groups)
    t = stratified_times(len(data_groups), vectors, draw)
    losses = velocity.training_loss(data_groups, group_vectors(noise, time_groups), t)
    return losses.flatten()[: len(vectors)].mean()


@torch.no_grad()
def _held_out_loss(
    velocity: PreconditionedVelocity,
    averaged: nn.Module,
    held_out: Float[Tensor, "m d"],
    settings: FitSettings,
) -> float:
    """Of the averaged weights, with the same noise and times at every look."""
    looked_at = PreconditionedVelocity(averaged, velocity.mean, velocity.variances, velocity.axes)
    draw = rng.generator(settings.seed, "fit", "held out")
    tiled = held_out.repeat(LOOK_DRAWS, 1)
    return float(_loss(looked_at, tiled, settings.time_groups, draw))
