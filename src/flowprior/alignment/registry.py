"""From the name of an objective to the objective."""

from typing import Literal, get_args

from flowprior.alignment.flows import (
    DistributionMatching,
    EvidenceBound,
    FlowAlignment,
    ScoreDistillation,
    WeightedAlignment,
)
from flowprior.alignment.objective import GaussianKL, Objective, Sample, Unaligned
from flowprior.alignment.samples import MaximumMeanDiscrepancy, MomentMatching, SlicedWasserstein
from flowprior.core import rng
from flowprior.prior.flow_prior import FlowPrior
from flowprior.stats.moments import Moments

ObjectiveName = Literal[
    "none",
    "flow_prior",
    "likelihood",
    "elbo",
    "sds",
    "dmd",
    "sliced_w2",
    "mmd",
    "moments",
    "kl",
]
MOMENT_VECTORS = 65_536


def build_objective(
    name: ObjectiveName,
    prior: FlowPrior,
    targets: Sample,
    *,
    num_draws: int = 4,
    t_max: float = 0.95,
) -> Objective:
    """The objective of that name.

    Args:
        name: Which.
        prior: The frozen prior; asked by flow_prior, likelihood, elbo, sds and dmd.
        targets: Draws projected targets; asked by sliced_w2, mmd and moments.
        num_draws: Draws of noise and time for each latent, of those that ask the prior.
        t_max: The largest time that likelihood and dmd look at.

    Raises:
        ValueError: An unknown name, or a t_max that the objective cannot use.
    """
    flow, dim = prior.velocity, prior.dim
    if name == "none":
        return Unaligned()
    if name == "flow_prior":
        return FlowAlignment(flow, dim, num_draws)
    if name == "likelihood":
        return WeightedAlignment(flow, dim, num_draws, t_max)
    if name == "elbo":
        return EvidenceBound(flow, dim, num_draws)
    if name == "sds":
        return ScoreDistillation(flow, dim, num_draws)
    if name == "dmd":
        return DistributionMatching(flow, dim, num_draws, t_max)
    if name == "sliced_w2":
        return SlicedWasserstein(targets)
    if name == "mmd":
        return MaximumMeanDiscrepancy(targets)
    if name == "moments":
        moments = Moments(dim)
        moments.update(targets(MOMENT_VECTORS, rng.generator(0, "objective", "moments")))
        return MomentMatching(moments.mean, moments.covariance)
    if name == "kl":
        return GaussianKL()
    raise ValueError(f"unknown objective {name!r}; use one of {', '.join(get_args(ObjectiveName))}")
