"""Fitting a flow to features that are at hand."""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowprior.core import rng
from flowprior.core.optim import adamw, moving_average, schedule
from flowprior.flow.losses import grouped_loss
from flowprior.flow.velocity import CentredVelocity, VelocityMLP
from flowprior.prior.projection import Operator, Projection
from flowprior.stats.moments import Moments

KEPT_TARGETS = 20_000
"""Targets that a prior keeps, drawn at random, for what compares latents with them."""


class FittedFlow(NamedTuple):
    """What a fit leaves.

    Attributes:
        velocity: The field, trained.
        projection: From features to targets.
        targets: At most `KEPT_TARGETS` of them, [n, d].
    """

    velocity: CentredVelocity
    projection: Projection
    targets: Tensor


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
) -> FittedFlow:
    """Project features and train a flow on them; see `FlowPrior.fit` for arguments and errors."""
    settings.check()
    seed = settings.seed
    with torch.inference_mode(False), torch.enable_grad(), rng.plain_defaults():
        vectors = feature_vectors(features, device)
        if dim is not None and dim > vectors.shape[-1]:
            raise ValueError(
                f"cannot project {vectors.shape[-1]} channels to {dim}; take a dim from 1 to {vectors.shape[-1]}"
            )
        moments = Moments(vectors.shape[-1])
        moments.update(vectors)
        projection = Projection.fit(
            moments, vectors.shape[-1] if dim is None else dim, operator, seed
        )
        targets = projection.to(vectors.device)(vectors)
        velocity = _train(targets, settings)
        rows = torch.randperm(len(targets), generator=rng.generator(seed, "fit", "kept"))
        kept = targets[rows[:KEPT_TARGETS].to(targets.device)].cpu()
    return FittedFlow(velocity, projection, kept)


def feature_vectors(
    features: Any, device: torch.device | str | None = None
) -> Float[Tensor, "n D"]:
    """Features as float32 vectors, on their own device by default; what was passed is not changed.

    Args:
        features: Tensor, array (of any byte order and stride), data frame or nested lists of numbers, [..., D].
        device: Where to put them.

    Raises:
        ValueError: They are no real numbers, have fewer than two axes, or there are none.
    """
    if isinstance(features, Tensor):
        tensor = features.detach()
        if tensor.layout != torch.strided or tensor.is_complex():
            raise ValueError("features must be a dense tensor of real numbers")
    else:
        try:
            array = np.asarray(features)
            array = array.astype(np.float64) if array.dtype == object else array
            if array.dtype.kind not in "biuf":
                raise TypeError(str(array.dtype))
        except (TypeError, ValueError) as error:
            raise ValueError(f"features must be numbers, [..., D]: {error}") from None
        tensor = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    if tensor.ndim < 2 or not tensor.numel():
        raise ValueError(f"features must be [..., D] and not empty, found {tuple(tensor.shape)}")
    tensor = tensor.to(device=device, dtype=torch.float32)  # of another dtype it is a copy
    tensor = tensor.clone() if tensor.is_inference() else tensor
    return tensor.reshape(-1, tensor.shape[-1])


def _train(targets: Float[Tensor, "n d"], settings: FitSettings) -> CentredVelocity:
    """Flow matching on targets about their mean, so that a mean of many standard deviations fits as well as none."""
    steps, seed = settings.steps, settings.seed
    mean = targets.double().mean(0).float() if targets.device.type == "cpu" else targets.mean(0)
    with rng.scoped(seed, "fit", "init"):
        network = VelocityMLP(targets.shape[1], settings.width, settings.depth).to(targets.device)
    optimizer = adamw(network, settings.lr, (0.9, 0.95), weight_decay=1e-4)
    rates = schedule(optimizer, "cosine", steps, warmup_steps=min(100, steps // 10))
    averaged = moving_average(network, settings.ema_decay)
    for step in range(steps):
        draw = rng.generator(seed, "fit", step)
        rows = torch.randint(len(targets), (settings.batch_vectors,), generator=draw)
        centred = targets[rows.to(targets.device)] - mean
        loss = grouped_loss(network, centred, settings.time_groups, draw).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise ValueError(f"the flow matching loss diverged at step {step}; lower `lr`")
        optimizer.step()
        rates.step()
        averaged.update_parameters(network)
    network.load_state_dict(averaged.module.state_dict())
    network.zero_grad(set_to_none=True)
    return CentredVelocity(network, mean)
