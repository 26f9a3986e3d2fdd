"""One target of the 2-D study: its flow, free points pulled towards it, maps, curves (Fig. 3, 5, 6, arXiv:2506.05240).

Usage   python stages/toy/study.py <target>
Writes  data/toy/<target>/                  flow_prior/, points.safetensors (the points at every look)
        metrics/toy/<target>.json           NLL, coverage, verdict; metrics/toy/<target>.csv its curves
        metrics/figures/toy/<target>.png    three panels; <target>_path.png the points over the steps
"""

from flowprior.toy.config import Study, argument, check_study, load_study

check_study(__name__, "targets")

import time
from pathlib import Path

from flowprior.core.io import write_csv, write_json
from flowprior.core.root import find_root
from flowprior.figures.plots import save_figure
from flowprior.ops.machine import write_costs
from flowprior.toy.figures import path_figure, study_figure
from flowprior.toy.judging import judge_points, loss_against_nll
from flowprior.toy.maps import common_loss, map_target
from flowprior.toy.names import TargetName
from flowprior.toy.points import move_points
from flowprior.toy.target_flow import fit_flow
from flowprior.toy.targets import build_target


def main(cfg: Study, root: Path, name: TargetName) -> None:
    """Run the stage for one target."""
    started = time.perf_counter()
    target = build_target(name)
    prior = fit_flow(cfg, root, target)
    prior.save(root / f"data/toy/{name}/flow_prior", target=name)
    moved = move_points(cfg, root, target, prior, cfg.align, "study")
    moved.save(root / f"data/toy/{name}/points.safetensors")
    curve, points = moved.curve, moved.history[-1]
    facts = judge_points(cfg, target, points) | loss_against_nll(curve, cfg.seed)
    facts |= {
        "objective": cfg.align.objective,
        "steps": cfg.scale.points.steps,
        "alignment_loss": curve[-1]["alignment_loss"],
        "seed": cfg.seed,
    }
    shown = map_target(cfg, target)
    velocity = prior.to("cpu").velocity
    losses = common_loss(velocity, shown.points, cfg.scale.density.map_draws, cfg.seed)
    figures = root / "metrics/figures/toy"
    save_figure(study_figure(shown, losses, points, curve), figures / f"{name}.png")
    save_figure(path_figure(shown, moved.steps, moved.history), figures / f"{name}_path.png")
    write_csv(root / f"metrics/toy/{name}.csv", curve)
    write_json(root / f"metrics/toy/{name}.json", facts)
    write_costs(root, f"toy/{name}", time.perf_counter() - started, moved.began_at)


if __name__ == "__main__":
    main(load_study(), find_root(), argument("targets"))
