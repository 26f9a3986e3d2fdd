"""All objectives beside one another: where each has put the points on the mixture.

Reads   data/toy/objectives/, metrics/toy/objectives/
Writes  metrics/figures/toy/objectives.png
"""

from flowprior.toy import config as study_params
from flowprior.toy.config import ROOT, Study

study_params.check(__name__)

from pathlib import Path

from study import SHOWN, grid_over

from flowprior.core import rng
from flowprior.core.io import load_tensors, read_json
from flowprior.figures.plots import save_figure
from flowprior.toy.figures import gallery_figure
from flowprior.toy.points import reference_nll
from flowprior.toy.targets import build_target


def main(cfg: Study, root: Path) -> None:
    """Run the stage in a workspace."""
    target = build_target("mixture")
    data = target.sample(SHOWN, rng.generator(cfg.seed, target.name, "shown"))
    axes, grid = grid_over(data, cfg.scale.density.grid)
    nll = reference_nll(cfg, target)(grid).view(len(axes[1]), len(axes[0]))
    panels = []
    for objective in cfg.objectives:
        points = load_tensors(root / f"data/toy/objectives/{objective}.safetensors")["history"][-1]
        panels.append(
            (objective, points, read_json(root / f"metrics/toy/objectives/{objective}.json"))
        )
    save_figure(gallery_figure(axes, nll, panels), root / "metrics/figures/toy/objectives.png")


if __name__ == "__main__":
    main(study_params.load_study(), ROOT)
