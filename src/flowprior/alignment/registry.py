"""From the name of an objective to the objective."""

from collections.abc import Mapping
from typing import Any

from flowprior.alignment.names import OBJECTIVES
from flowprior.alignment.objective import Material, Objective, Sample
from flowprior.prior.flow_prior import FlowPrior


def build_objective(
    name: str,
    prior: FlowPrior,
    targets: Sample,
    num_draws: int = 4,
    t_max: float = 0.95,
    options: Mapping[str, Any] | None = None,
) -> Objective:
    """The objective of that name.

    Args:
        name: Of `flowprior.alignment.names.OBJECTIVES`, or a plugin's; a class with a classmethod
            `build(material, **options)`.
        prior: The frozen prior; asked by flow_prior, likelihood, elbo, sds and dmd.
        targets: Draws projected targets; asked by sliced_w2, mmd and moments.
        num_draws: Draws of noise and time for each latent, of those that ask the prior.
        t_max: The largest time that likelihood and dmd look at.
        options: Of an objective of one's own.

    Raises:
        ValueError: An unknown name, or a t_max that the objective cannot use.
    """
    material = Material(prior.velocity, prior.dim, targets, num_draws, t_max)
    objective: Objective = OBJECTIVES.load(name).build(material, **(options or {}))
    return objective
