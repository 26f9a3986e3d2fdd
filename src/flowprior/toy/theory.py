"""How well do the losses rank the exact NLL? Does the paper's bound hold? How far is the flow from optimal?

Usage   python stages/toy/theory.py <target with a closed form>
Reads   data/toy/<target>/
Writes  metrics/toy/theory_<target>.json          correlations with 95% CI by loss, region and velocity;
                                                  Proposition 1; Assumption 1
        metrics/figures/toy/theory_<target>.png

Losses: `alignment` is L(y), Eq. (5); `alignment_minus_divergence` is L(y) - C(y), what Proposition 1
bounds the NLL with, up to a constant; `weighted` is L(y) with w(t) = t / (1 - t). Regions: fresh
target samples, the latents that the study left, and points spread evenly over the maps. Velocities:
the closed form and the trained one. Noise and times are the nodes of a Gauss quadrature, the same for all points.
"""

from flowprior.toy import config as study_params
from flowprior.toy.config import ROOT, Study

study_params.check(__name__)

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from study import SHOWN, grid_over, load_flow
from torch import Tensor

from flowprior.core import rng
from flowprior.core.io import load_tensors, write_json
from flowprior.figures.plots import save_figure
from flowprior.flow.likelihood import (
    importance_times,
    log_density,
    path_divergence,
    squared_error,
)
from flowprior.flow.losses import Velocity
from flowprior.flow.path import interpolate
from flowprior.stats.correlation import correlations
from flowprior.toy.closed_forms import GaussianMixture
from flowprior.toy.figures import theory_figure
from flowprior.toy.targets import Target2D, TargetName, build_target

LOSSES = ("alignment", "alignment_minus_divergence", "weighted")
GAP_VECTORS = 20_000
T_MAX = 0.95
"""Where the weight t / (1 - t) ends."""
CHUNK = 250
"""Points at once."""
SOLVER_TOLERANCE = 1e-3
"""Nats that the ODE solver may be off before a bound counts as violated."""


def main(cfg: Study, root: Path, name: TargetName) -> None:
    """Run the stage for one target."""
    started = time.perf_counter()
    target = build_target(name)
    density = target.density
    if density is None:
        raise ValueError(f"{name} has no density in closed form")
    trained = load_flow(root, name).velocity
    velocities: dict[str, Velocity] = {"closed_form": density.velocity, "trained": trained}
    metrics: dict[str, float | int | str] = {}
    shown = {}
    nodes = quadrature(cfg.scale.theory.times, cfg.scale.theory.noises)
    for region, points in regions(cfg, root, target).items():
        exact = -density.log_density(points)
        for kind, velocity in velocities.items():
            found = losses(velocity, points, nodes)
            shown[region, kind] = (exact, found)
            for loss in LOSSES:
                pairs = correlations(found[loss].tolist(), exact.tolist(), cfg.seed)
                for coefficient, value in pairs.items():
                    key = f"{coefficient}_{loss}_{region}_{kind}"
                    metrics |= {
                        key: value.value,
                        f"{key}_low": value.low,
                        f"{key}_high": value.high,
                    }
            own = exact if kind == "closed_form" else -log_density(velocity, points)
            excess = own - found["alignment_minus_divergence"]
            metrics |= {
                f"bound_above_density_share_{region}_{kind}": share(excess > SOLVER_TOLERANCE),
                f"bound_above_density_most_nats_{region}_{kind}": float(excess.max()),
            }
    metrics |= flow_gap(trained, density, target, cfg.seed)
    metrics |= {
        "num_points": cfg.scale.theory.points,
        "num_nodes": len(nodes.t),
        "seed": cfg.seed,
        "seconds": time.perf_counter() - started,
    }
    save_figure(
        theory_figure(shown, LOSSES, metrics), root / f"metrics/figures/toy/theory_{name}.png"
    )
    write_json(root / f"metrics/toy/theory_{name}.json", metrics)


def regions(cfg: Study, root: Path, target: Target2D) -> dict[str, Tensor]:
    """Points of each region, [n, 2]."""
    n = cfg.scale.theory.points
    draw = rng.generator(cfg.seed, "theory", target.name)
    history = load_tensors(root / f"data/toy/{target.name}/points.safetensors")["history"]
    data = target.sample(SHOWN, rng.generator(cfg.seed, target.name, "shown"))
    (across, up), _ = grid_over(data, 2)
    low, high = torch.stack([across, up], -1)
    return {
        "targets": target.sample(n, draw),
        "latents": history[-1][:n],
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
    """All pairs of so many times with so many squared noises."""
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


def losses(velocity: Velocity, points: Tensor, nodes: Quadrature) -> dict[str, Tensor]:
    """Each loss of each point in nats, summed over dims."""
    found: dict[str, list[Tensor]] = {loss: [] for loss in LOSSES}
    for part in points.split(CHUNK):
        noise = nodes.noise.expand(-1, len(part), -1)
        with torch.no_grad():
            error = squared_error(velocity, part, noise, nodes.t, nodes.weights)
            weighted = squared_error(velocity, part, noise, nodes.weighted_t, nodes.weighted)
        divergence = path_divergence(velocity, part, noise, nodes.t, nodes.weights)
        for loss, values in zip(LOSSES, (error, error - divergence, weighted), strict=True):
            found[loss].append(values)
    return {loss: torch.cat(parts) for loss, parts in found.items()}


@torch.no_grad()
def flow_gap(
    velocity: Velocity, density: GaussianMixture, target: Target2D, seed: int
) -> dict[str, float]:
    """Assumption 1 in numbers, means over dims.

    `irreducible_loss` is the flow matching loss of the optimal velocity (the assumption sets it to 0), `held_out_loss`
    that of the trained one on the same draws, `velocity_gap` E (v - v*)^2, by which both differ in expectation.
    """
    draw = rng.generator(seed, "gap", target.name)
    data = target.sample(GAP_VECTORS, draw)
    noise = torch.randn(GAP_VECTORS, 2, generator=draw)
    t = torch.rand(GAP_VECTORS, generator=draw)
    x_t = interpolate(noise, data, t)
    ours, optimal = velocity(x_t, t), density.velocity(x_t, t)
    straight = data - noise
    return {
        "irreducible_loss": float((optimal - straight).square().mean()),
        "held_out_loss": float((ours - straight).square().mean()),
        "velocity_gap": float((ours - optimal).square().mean()),
    }


def share(flags: Tensor) -> float:
    """Of the flags that are set."""
    return float(flags.double().mean())


if __name__ == "__main__":
    main(study_params.load_study(), ROOT, study_params.argument("exact"))
