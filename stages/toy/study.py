"""One target of the 2-D study: its flow, free points pulled towards it, maps, curves (Fig. 3, 5, 6, arXiv:2506.05240).

Usage   python stages/toy/study.py <target>
Writes  data/toy/<target>/                  flow_prior/, points.safetensors (the points at every look)
        metrics/toy/<target>.json           NLL, coverage, collapse; metrics/toy/<target>.csv its curves
        metrics/figures/toy/<target>.png    three panels; <target>_path.png the points over the steps
"""

from flowprior.toy import config as study_params
from flowprior.toy.config import ROOT, Study

study_params.check(__name__)

import time
from pathlib import Path

import torch
from torch import Tensor

from flowprior.core import rng
from flowprior.core.io import save_tensors, write_csv, write_json
from flowprior.figures.plots import save_figure
from flowprior.prior.flow_prior import FlowPrior
from flowprior.stats.correlation import correlations
from flowprior.toy.figures import path_figure, study_figure
from flowprior.toy.points import common_loss, fit_flow, judge, move_points, reference_nll
from flowprior.toy.targets import TargetName, build_target

SHOWN = 3000
MARGIN = 0.2
"""Of the data's range, added to the maps on every side."""


def main(cfg: Study, root: Path, name: TargetName) -> None:
    """Run the stage for one target."""
    started = time.perf_counter()
    target = build_target(name)
    prior = fit_flow(cfg, root, target)
    where = root / "data/toy" / name
    prior.save(where / "flow_prior", target=name)
    moved = move_points(cfg, root, target, prior, cfg.align.objective)
    save_tensors(
        where / "points.safetensors", {"history": moved.history, "steps": torch.tensor(moved.steps)}
    )
    points = moved.history[-1]
    curve = moved.curve
    metrics = judge(cfg, target, points) | {
        "objective": cfg.align.objective,
        "steps": cfg.scale.points.steps,
        "alignment_loss": curve[-1]["alignment_loss"],
        "seed": cfg.seed,
    }
    over_steps = correlations(
        [row["alignment_loss"] for row in curve], [row["nll"] for row in curve], cfg.seed
    )
    for kind, found in over_steps.items():
        metrics |= {
            f"{kind}_loss_nll_over_steps": found.value,
            f"{kind}_loss_nll_over_steps_low": found.low,
            f"{kind}_loss_nll_over_steps_high": found.high,
        }
    data = target.sample(SHOWN, rng.generator(cfg.seed, name, "shown"))
    axes, grid = grid_over(data, cfg.scale.density.grid)
    side = len(axes[0])
    nll = reference_nll(cfg, target)(grid).view(side, side)
    prior.to("cpu")
    losses = common_loss(prior, grid, cfg.scale.density.map_draws, cfg.seed).view(side, side)
    figures = root / "metrics/figures/toy"
    save_figure(
        study_figure(axes, nll, losses, points, data, curve, str(metrics["density"])),
        figures / f"{name}.png",
    )
    save_figure(path_figure(axes, nll, moved.steps, moved.history), figures / f"{name}_path.png")
    write_csv(root / f"metrics/toy/{name}.csv", curve)
    write_json(
        root / f"metrics/toy/{name}.json", metrics | {"seconds": time.perf_counter() - started}
    )


def grid_over(data: Tensor, side: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Both axes [side] and the points [side^2, 2] of a square grid over the data, row by row from below."""
    low, high = data.amin(0), data.amax(0)
    centre, half = (low + high) / 2, float((high - low).max()) * (0.5 + MARGIN)
    across, up = (torch.linspace(c - half, c + half, side) for c in centre.tolist())
    grid = torch.stack(torch.meshgrid(across, up, indexing="xy"), -1)
    return (across, up), grid.reshape(-1, 2)


def load_flow(root: Path, name: str) -> FlowPrior:
    """The flow that this stage trained for a target."""
    return FlowPrior.load(root / "data/toy" / name / "flow_prior")


if __name__ == "__main__":
    main(study_params.load_study(), ROOT, study_params.argument("targets"))
