"""The pull of a pipeline's stage: an alignment term whose own flow is a learner of the session."""

from collections.abc import Callable

from torch import nn

from flowprior.alignment.config import Pull
from flowprior.alignment.fake_flow import Trains
from flowprior.alignment.objective import Sample
from flowprior.alignment.term import AlignmentTerm, alignment_term
from flowprior.core.rng import Draw
from flowprior.prior.flow_prior import FlowPrior
from flowprior.training.plan import Optimizer
from flowprior.training.session import Session


def open_term(session: Session, prior: FlowPrior, pull: Pull, targets: Sample) -> AlignmentTerm:
    """The term that parameters ask for, without their weight; before `session.steps`.

    A flow of the latents is in the session's checkpoints, so that a killed run goes on with it.

    Args:
        session: The stage's.
        prior: On the session's device.
        pull: The parameters.
        targets: Draws vectors of the target distribution.

    Raises:
        ValueError: A parameter that the objective cannot use.
    """
    optimizer = Optimizer(
        lr=pull.fake_lr,
        warmup_steps=0,
        schedule="constant",
        beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        ema_decay=0.0,
    )

    def learner(flow: nn.Module) -> Trains:
        trains: Trains = session.learner("fake_flow", flow, optimizer)
        return trains

    return alignment_term(
        prior,
        pull.objective,
        targets=targets,
        num_draws=pull.num_draws,
        t_max=pull.t_max,
        fake_updates=pull.fake_updates,
        fake_lr=pull.fake_lr,
        options=pull.options,
        learner=learner,
    )


def fresh_draws(session: Session, step: int, draw: Draw) -> Callable[[int], Draw]:
    """Randomness for each update of a flow of the latents behind a step."""
    return lambda update: draw._replace(generator=session.generator("fake", step, update))
