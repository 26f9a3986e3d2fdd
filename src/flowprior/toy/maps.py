"""A square window over a target: a regular grid of points in it, their NLL and their alignment loss."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from flowprior.core import rng
from flowprior.flow.losses import Velocity, alignment_loss
from flowprior.flow.path import stratified_times
from flowprior.toy.config import Study
from flowprior.toy.densities import reference_nll
from flowprior.toy.targets import Target2D

SHOWN = 3000
"""Target samples that a figure shows and a window is laid around."""
MARGIN = 0.2
"""Of the data's range, added to the window on every side."""
LOSS_BLOCK = 4096
"""Points at once."""


class TargetMap(NamedTuple):
    """A target in its window.

    Attributes:
        data: Target samples [SHOWN, 2].
        axes: Coordinates of the columns and of the rows, [side] each.
        points: The grid [side^2, 2], row by row from below.
        nll: Of the grid, [side, side], nats.
        density: What the NLL was read from, `exact` or `kde`.
    """

    data: Tensor
    axes: tuple[Tensor, Tensor]
    points: Tensor
    nll: Tensor
    density: Literal["exact", "kde"]


def map_target(cfg: Study, target: Target2D) -> TargetMap:
    """A target's window with as many points along a side as the preset says."""
    data = shown_samples(cfg, target)
    axes, points = grid_over(data, cfg.scale.density.grid)
    nll = reference_nll(cfg, target)
    values = nll(points).view(len(axes[1]), len(axes[0]))
    return TargetMap(data, axes, points, values, nll.kind)


def shown_samples(cfg: Study, target: Target2D) -> Float[Tensor, "n 2"]:
    """The samples of a target that its figures show, equal for all scripts."""
    return target.sample(SHOWN, rng.generator(cfg.seed, target.name, "shown"))


def grid_over(data: Float[Tensor, "n 2"], side: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Both axes [side] and the points [side^2, 2] of a square grid over the data, row by row from below."""
    low, high = data.amin(0), data.amax(0)
    centre, half = (low + high) / 2, float((high - low).max()) * (0.5 + MARGIN)
    across, up = (torch.linspace(c - half, c + half, side) for c in centre.tolist())
    grid = torch.stack(torch.meshgrid(across, up, indexing="xy"), -1)
    return (across, up), grid.reshape(-1, 2)


@torch.no_grad()
def common_loss(
    velocity: Velocity, points: Float[Tensor, "n 2"], num_draws: int, seed: int
) -> Float[Tensor, " n"]:
    """The alignment loss of each point, with the same draws for all of them: a smooth function of the point.

    Args:
        velocity: A frozen field, on the points' device.
        points: Where to evaluate; results are on their device.
        num_draws: Draws of noise and time.
        seed: Of the draws.
    """
    draw = rng.generator(seed, "common", num_draws)
    noise = torch.randn(num_draws, 1, 2, generator=draw).to(points)
    t = stratified_times(num_draws, torch.empty(()), draw).to(points)
    parts = [
        alignment_loss(
            velocity,
            part.expand(num_draws, *part.shape),
            noise.expand(num_draws, len(part), 2),
            t,
        ).mean(0)
        for part in points.split(LOSS_BLOCK)
    ]
    return torch.cat(parts)
