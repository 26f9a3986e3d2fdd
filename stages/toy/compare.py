"""One objective on the mixture: the same start, the same steps, the same flow as all others.

Usage   python stages/toy/compare.py <objective>
Reads   data/toy/mixture/
Writes  data/toy/objectives/<objective>.safetensors     the points at every look
        metrics/toy/objectives/<objective>.json         NLL, spread within modes, coverage, cost
"""

from flowprior.toy import config as study_params
from flowprior.toy.config import ROOT, Study

study_params.check(__name__)

from pathlib import Path

import torch
from study import load_flow

from flowprior.alignment.registry import ObjectiveName
from flowprior.core.io import save_tensors, write_json
from flowprior.toy.points import judge, move_points
from flowprior.toy.targets import build_target


def main(cfg: Study, root: Path, objective: ObjectiveName) -> None:
    """Run the stage for one objective."""
    target = build_target("mixture")
    moved = move_points(cfg, root, target, load_flow(root, target.name), objective)
    path = root / f"data/toy/objectives/{objective}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, {"history": moved.history, "steps": torch.tensor(moved.steps)})
    metrics = judge(cfg, target, moved.history[-1]) | {
        "alignment_loss": moved.curve[-1]["alignment_loss"],
        "seed": cfg.seed,
        "steps": cfg.scale.points.steps,
        "seconds": moved.seconds_per_step * cfg.scale.points.steps,
    }
    write_json(root / f"metrics/toy/objectives/{objective}.json", metrics)


if __name__ == "__main__":
    main(study_params.load_study(), ROOT, study_params.argument("objectives"))
