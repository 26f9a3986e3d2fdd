"""How well do the losses rank the exact NLL? Does the paper's bound hold? How far is the flow from optimal?

Usage   python stages/toy/theory.py <target with a closed form>
Reads   data/toy/<target>/
Writes  metrics/toy/theory_<target>.json          correlations with 95% CI by loss, region and velocity;
                                                  Proposition 1; Assumption 1
        metrics/figures/toy/theory_<target>.png
"""

from flowprior.toy.config import Study, argument, check_study, load_study

check_study(__name__, "exact")

import time
from pathlib import Path

from flowprior.core.io import load_tensors, write_json
from flowprior.core.root import find_root
from flowprior.figures.plots import save_figure
from flowprior.flow.likelihood import log_density
from flowprior.ops.machine import write_costs
from flowprior.prior.flow_prior import FlowPrior
from flowprior.toy import theory
from flowprior.toy.figures import theory_figure
from flowprior.toy.judging import Facts
from flowprior.toy.names import ExactTargetName
from flowprior.toy.targets import build_target


def main(cfg: Study, root: Path, name: ExactTargetName) -> None:
    """Run the stage for one target."""
    started = time.perf_counter()
    target = build_target(name)
    density = target.exact_density()
    trained = FlowPrior.load(root / f"data/toy/{name}/flow_prior").velocity
    latents = load_tensors(root / f"data/toy/{name}/points.safetensors")["history"][-1]
    nodes = theory.quadrature(cfg.scale.theory.times, cfg.scale.theory.noises)
    facts: Facts = {}
    panels = {}
    for region, points in theory.regions(cfg, target, latents).items():
        exact_nll = -density.log_density(points)
        for kind, velocity in (("closed_form", density.velocity), ("trained", trained)):
            losses = theory.losses_of(velocity, points, nodes)
            own_nll = exact_nll if kind == "closed_form" else -log_density(velocity, points)
            bound = losses["alignment_minus_divergence"]
            facts |= theory.ranking(losses, exact_nll, f"{region}_{kind}", cfg.seed)
            facts |= theory.bound_violations(bound, own_nll, f"{region}_{kind}")
            panels[region, kind] = (exact_nll, losses)
    facts |= theory.flow_gap(trained, density, target, cfg.seed)
    facts |= {"num_points": cfg.scale.theory.points, "num_nodes": len(nodes.t), "seed": cfg.seed}
    figure = theory_figure(panels, theory.LOSSES, facts)
    save_figure(figure, root / f"metrics/figures/toy/theory_{name}.png")
    write_json(root / f"metrics/toy/theory_{name}.json", facts)
    write_costs(root, f"toy/theory_{name}", time.perf_counter() - started)


if __name__ == "__main__":
    main(load_study(), find_root(), argument("exact"))
