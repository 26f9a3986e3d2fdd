"""What the study's metrics say of points that were moved."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from flowprior.check.verdict import compare
from flowprior.check.yardstick import Yardstick
from flowprior.core import rng
from flowprior.stats.correlation import Correlation, correlations
from flowprior.stats.match import match_report
from flowprior.toy.config import NEIGHBOURS, Study
from flowprior.toy.densities import reference_nll
from flowprior.toy.modes import mode_report
from flowprior.toy.targets import Target2D

TARGETS = 20_000
"""Samples of the target that the verdict compares with."""
Facts = dict[str, float | int | str]


def judge_points(cfg: Study, target: Target2D, points: Float[Tensor, "n 2"]) -> Facts:
    """How the points compare with fresh samples of the target, and one word for it.

    Args:
        cfg: Holds the seed and what densities are read from.
        target: What the points should look like.
        points: On the CPU.

    Returns:
        The keys of `match_report`; `nll`, `nll_targets` (means) and `nll_gap`, nats, with `density`, what they were
        read from, `exact` or `kde`; `verdict`, as of `FlowPrior.check`; and those of `mode_report` where the modes are
        known.
    """
    fresh, control = (
        target.sample(len(points), rng.generator(cfg.seed, target.name, name))
        for name in ("fresh", "control")
    )
    nll = reference_nll(cfg, target)
    mean_nll, target_nll = float(nll(points).mean()), float(nll(fresh).mean())
    report = match_report(
        points.numpy(), fresh.numpy(), control.numpy(), seed=cfg.seed, k=NEIGHBOURS
    )
    many = target.sample(TARGETS, rng.generator(cfg.seed, target.name, "yardstick"))
    yardstick = Yardstick(many.double().numpy(), len(points), cfg.seed)
    verdict, _ = compare(points.double().numpy(), yardstick)
    facts: Facts = {
        **report,
        "nll": mean_nll,
        "nll_targets": target_nll,
        "nll_gap": mean_nll - target_nll,
        "density": nll.kind,
        "verdict": verdict.word,
    }
    if target.density is not None:
        facts |= mode_report(points, target.density.means, target.density.std)
    return facts


def loss_against_nll(curve: Sequence[Mapping[str, float | int]], seed: int) -> Facts:
    """Does the alignment loss fall as the NLL does? Pearson's and Spearman's coefficients over the looks.

    Args:
        curve: Rows with `alignment_loss` and `nll`.
        seed: Of the bootstrap.

    Returns:
        `<coefficient>_loss_nll_over_steps`, with `_low` and `_high`, its 95% interval; nothing where a side does
        not vary.
    """
    losses, nlls = ([row[name] for row in curve] for name in ("alignment_loss", "nll"))
    facts: Facts = {}
    for coefficient, interval in correlations(losses, nlls, seed).items():
        facts |= with_interval(f"{coefficient}_loss_nll_over_steps", interval)
    return facts


def with_interval(key: str, correlation: Correlation) -> dict[str, float]:
    """A coefficient under its key, and the ends of its interval under `<key>_low` and `<key>_high`."""
    return {key: correlation.value, f"{key}_low": correlation.low, f"{key}_high": correlation.high}
