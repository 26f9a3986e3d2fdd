"""One objective on the mixture: the same start, the same steps, the same flow as all others.

Usage   python stages/toy/compare.py <objective>
Reads   data/toy/mixture/
Writes  data/toy/objectives/<objective>.safetensors     the points at every look
        metrics/toy/objectives/<objective>.json         NLL, spread within modes, coverage
"""

from flowprior.toy.config import Study, argument, check_study, load_study

check_study(__name__, "objectives")

from pathlib import Path

from flowprior.core.io import write_json
from flowprior.core.root import find_root
from flowprior.ops.machine import write_costs
from flowprior.prior.flow_prior import FlowPrior
from flowprior.toy.judging import judge_points
from flowprior.toy.points import move_points
from flowprior.toy.targets import build_target


def main(cfg: Study, root: Path, objective: str) -> None:
    """Run the stage for one objective."""
    target = build_target("mixture")
    prior = FlowPrior.load(root / "data/toy/mixture/flow_prior")
    pull = cfg.align.model_copy(update={"objective": objective, "options": {}})
    moved = move_points(cfg, root, target, prior, pull, "compare")
    moved.save(root / f"data/toy/objectives/{objective}.safetensors")
    facts = judge_points(cfg, target, moved.history[-1]) | {
        "alignment_loss": moved.curve[-1]["alignment_loss"],
        "seed": cfg.seed,
        "steps": cfg.scale.points.steps,
    }
    write_json(root / f"metrics/toy/objectives/{objective}.json", facts)
    write_costs(root, f"toy/objectives/{objective}", moved.seconds, moved.began_at)


if __name__ == "__main__":
    main(load_study(), find_root(), argument("objectives"))
