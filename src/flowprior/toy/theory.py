"""How well do the losses rank the exact NLL? Does the paper's bound hold? How far is the flow from optimal?

Losses: `alignment` is L(y), Eq. (5), arXiv:2506.05240; `alignment_minus_divergence` is L(y) - C(y), what
Proposition 1 bounds the NLL with, up to a constant; `weighted` is L(y) with w(t) = t / (1 - t). Regions: fresh
target samples, the latents that the study left, and points spread evenly over the maps. Velocities: the closed form
and the trained one. Noise and times are the nodes of a Gauss quadrature, the same for all points.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowprior.core import rng
from flowprior.flow.likelihood import importance_times, path_divergence, squared_error
from flowprior.flow.losses import Velocity
from flowprior.flow.path import interpolate
from flowprior.stats.correlation import correlations
from flowprior.toy.closed_forms import GaussianMixture
from flowprior.toy.config import Study
from flowprior.toy.judging import Facts, with_interval
from flowprior.toy.maps import grid_over, shown_samples
from flowprior.toy.targets import Target2D

LOSSES = ("alignment", "alignment_minus_divergence", "weighted")
GAP_VECTORS = 20_000
"""Draws of data, noise and time that the flow is compared with the optimal one on."""
T_MAX = 0.95
"""Where the weight t / (1 - t) ends."""
CHUNK = 250
"""Points at once."""
SOLVER_TOLERANCE = 1e-3
"""Nats that the ODE solver may be off before a bound counts as violated."""


def regions(cfg: Study, target: Target2D, latents: Float[Tensor, "m 2"]) -> dict[str, Tensor]:
    """Points of each region, [n, 2]: of `targets`, the first `latents`, and `off_target`, evenly over the maps."""
    n = cfg.scale.theory.points
    draw = rng.generator(cfg.seed, "theory", target.name)
    (across, up), _ = grid_over(shown_samples(cfg, target), 2)
    low, high = torch.stack([across, up], -1)
    return {
        "targets": target.sample(n, draw),
        "latents": latents[:n],
        "off_target": low + (high - low) * torch.rand(n, 2, generator=draw),
    }


class Quadrature(NamedTuple):
    """Nodes for E over N(0, I) noise and U(0, 1) times, the same for all points.

    Attributes:
        noise: [k, 1, 2], Gauss-Hermite.
        t: [k, 1], Gauss-Legendre.
        weights: [k], of mean 1.
        weighted_t: [k, 1], times for w(t) = t / (1 - t) up to `T_MAX`.
        weighted: [k], what their nodes weigh.
    """

    noise: Tensor
    t: Tensor
    weights: Tensor
    weighted_t: Tensor
    weighted: Tensor


def quadrature(num_times: int, num_noises: int) -> Quadrature:
    """All pairs of so many times with the square of so many noises."""
    x, of_noise = np.polynomial.hermite_e.hermegauss(num_noises)
    u, of_time = np.polynomial.legendre.leggauss(num_times)
    square = torch.from_numpy(np.stack(np.meshgrid(x, x), -1).reshape(-1, 2)).float()
    of_square = torch.from_numpy(np.outer(of_noise, of_noise).ravel() / of_noise.sum() ** 2)
    times = torch.from_numpy((u + 1) / 2).float().repeat_interleave(len(square))
    weights = torch.outer(torch.from_numpy(of_time / 2), of_square).flatten().float() * len(times)
    t, of_weight = importance_times(times, T_MAX)
    return Quadrature(
        square.repeat(num_times, 1).unsqueeze(1),
        times.unsqueeze(1),
        weights,
        t.unsqueeze(1),
        of_weight * weights,
    )


def losses_of(
    velocity: Velocity, points: Float[Tensor, "n 2"], nodes: Quadrature
) -> dict[str, Tensor]:
    """Each of `LOSSES` of each point, [n], in nats, summed over dims."""
    parts: dict[str, list[Tensor]] = {loss: [] for loss in LOSSES}
    for some in points.split(CHUNK):
        noise = nodes.noise.expand(-1, len(some), -1)
        with torch.no_grad():
            error = squared_error(velocity, some, noise, nodes.t, nodes.weights)
            weighted = squared_error(velocity, some, noise, nodes.weighted_t, nodes.weighted)
        divergence = path_divergence(velocity, some, noise, nodes.t, nodes.weights)
        for loss, values in zip(LOSSES, (error, error - divergence, weighted), strict=True):
            parts[loss].append(values)
    return {loss: torch.cat(blocks) for loss, blocks in parts.items()}


def ranking(
    losses: Mapping[str, Tensor], exact_nll: Float[Tensor, " n"], where: str, seed: int
) -> Facts:
    """Does each loss rank the points as the exact NLL does?

    Args:
        losses: Of `losses_of`.
        exact_nll: Of the same points.
        where: Region and velocity, for the keys.
        seed: Of the bootstrap.

    Returns:
        `<coefficient>_<loss>_<where>`, with `_low` and `_high`, its 95% interval.
    """
    facts: Facts = {}
    for loss, values in losses.items():
        pairs = correlations(values.tolist(), exact_nll.tolist(), seed)
        for coefficient, interval in pairs.items():
            facts |= with_interval(f"{coefficient}_{loss}_{where}", interval)
    return facts


def bound_violations(
    bound: Float[Tensor, " n"], own_nll: Float[Tensor, " n"], where: str
) -> dict[str, float]:
    """Where does L(y) - C(y) say that a point is denser than it is under the flow itself (Proposition 1)?

    Args:
        bound: L(y) - C(y), nats.
        own_nll: NLL under the flow whose loss that is, nats.
        where: Region and velocity, for the keys.

    Returns:
        `bound_above_density_share_<where>`, of the points, and `bound_above_density_most_nats_<where>`.
    """
    excess = own_nll - bound
    return {
        f"bound_above_density_share_{where}": share(excess > SOLVER_TOLERANCE),
        f"bound_above_density_most_nats_{where}": float(excess.max()),
    }


@torch.no_grad()
def flow_gap(
    velocity: Velocity, density: GaussianMixture, target: Target2D, seed: int
) -> dict[str, float]:
    """Assumption 1 in numbers, means over dims.

    Returns:
        `irreducible_loss`, the flow matching loss of the optimal velocity (the assumption sets it to 0),
        `held_out_loss`, that of the trained one on the same draws, and `velocity_gap`, E (v - v*)^2, by which
        both differ in expectation.
    """
    draw = rng.generator(seed, "gap", target.name)
    data = target.sample(GAP_VECTORS, draw)
    noise = torch.randn(GAP_VECTORS, 2, generator=draw)
    t = torch.rand(GAP_VECTORS, generator=draw)
    x_t = interpolate(noise, data, t)
    trained, optimal = velocity(x_t, t), density.velocity(x_t, t)
    straight = data - noise
    return {
        "irreducible_loss": float((optimal - straight).square().mean()),
        "held_out_loss": float((trained - straight).square().mean()),
        "velocity_gap": float((trained - optimal).square().mean()),
    }


def share(flags: Bool[Tensor, " n"]) -> float:
    """Of the flags, those that are set."""
    return float(flags.double().mean())
