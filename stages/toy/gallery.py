"""All objectives beside one another: where each has put the points on the mixture.

Reads   data/toy/objectives/, metrics/toy/objectives/
Writes  metrics/figures/toy/objectives.png
"""

from flowprior.toy.config import Study, check_study, load_study

check_study(__name__)

from pathlib import Path

from flowprior.core.io import load_tensors, read_json
from flowprior.core.root import find_root
from flowprior.figures.plots import save_figure
from flowprior.toy.figures import gallery_figure
from flowprior.toy.maps import map_target
from flowprior.toy.targets import build_target


def main(cfg: Study, root: Path) -> None:
    """Run the stage in a workspace."""
    panels = []
    for objective in cfg.objectives:
        history = load_tensors(root / f"data/toy/objectives/{objective}.safetensors")["history"]
        facts = read_json(root / f"metrics/toy/objectives/{objective}.json")
        panels.append((objective, history[-1], facts))
    figure = gallery_figure(map_target(cfg, build_target("mixture")), panels)
    save_figure(figure, root / "metrics/figures/toy/objectives.png")


if __name__ == "__main__":
    main(load_study(), find_root())
