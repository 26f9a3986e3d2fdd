"""The flow matching loss and the alignment loss: one formula, read in two directions.

Both return one value per vector, the **mean** over dims (the reduction of the published runs).
Multiply by d for the squared norm of the paper's equations.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from flowprior.core import rng
from flowprior.flow.path import (
    conditional_velocity,
    group_vectors,
    interpolate,
    stratified_times,
)

AT_ONCE = 1 << 15
"""Vectors that a loss without a gradient looks at together."""


@runtime_checkable
class Velocity(Protocol):
    """Any callable `velocity(x, t)`: x [..., d], t of shape x.shape[:-1] or broadcastable to it."""

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor: ...


def flow_matching_loss(
    velocity: Velocity,
    data: Float[Tensor, "*batch d"],
    noise: Float[Tensor, "*batch d"],
    t: Float[Tensor, "*#batch"],
) -> Float[Tensor, "*batch"]:
    """Mean over dims of (v(x_t, t) - (data - noise))^2; Eq. (3), arXiv:2506.05240.

    Args:
        velocity: The field to train.
        data: Samples of the target distribution.
        noise: Samples of N(0, I).
        t: Times in (0, 1); 0 is noise, 1 is data.
    """
    x_t = interpolate(noise, data, t)
    residual = velocity(x_t, t) - conditional_velocity(noise, data)
    if residual.dtype in (torch.float16, torch.bfloat16):
        residual = residual.float()
    return residual.square().mean(-1)


def alignment_loss(
    velocity: Velocity,
    latents: Float[Tensor, "*batch d"],
    noise: Float[Tensor, "*batch d"],
    t: Float[Tensor, "*#batch"],
) -> Float[Tensor, "*batch"]:
    """Mean over dims of (v(x_t, t) - (latents - noise))^2, x_t on the path to the latents; Eq. (5), arXiv:2506.05240.

    The formula of `flow_matching_loss`; what differs is who learns: here `velocity` is frozen and
    the gradient reaches the latents, through x_t and through the target.

    Args:
        velocity: A frozen field, trained on the target distribution.
        latents: The points to align.
        noise: Samples of N(0, I).
        t: Times in (0, 1).
    """
    return flow_matching_loss(velocity, latents, noise, t)


def grouped_loss(
    velocity: Velocity,
    vectors: Float[Tensor, "n d"],
    num_groups: int,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " n"]:
    """The loss of Eq. (3) and (5) with fresh noise and stratified times that groups of vectors share.

    A velocity whose modulation depends on t alone computes it once per group instead of once per
    vector; the expectation is that of independent times (see `stratified_times`). With `num_groups
    >= n` every vector has its own time.
    """
    noise = rng.normal_like(vectors, generator)
    data_groups = group_vectors(vectors, num_groups)
    noise_groups = group_vectors(noise, num_groups)
    t = stratified_times(len(data_groups), noise, generator)  # behind the noise, also if compiled
    losses = _in_parts(velocity, data_groups, noise_groups, t)
    return losses.flatten()[: len(vectors)]


def _in_parts(
    velocity: Velocity, data: Float[Tensor, "g m d"], noise: Float[Tensor, "g m d"], t: Tensor
) -> Float[Tensor, "g m"]:
    """The loss of all; without a gradient, which needs all at once, in parts that bound the memory."""
    size = max(1, AT_ONCE // len(data))
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or data.shape[1] <= size:
        return flow_matching_loss(velocity, data, noise, t)
    parts = zip(data.split(size, 1), noise.split(size, 1), strict=True)
    return torch.cat([flow_matching_loss(velocity, *part, t) for part in parts], 1)
