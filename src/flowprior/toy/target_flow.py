"""The flow of a target, trained on as many fresh samples of it as there are steps for."""

from pathlib import Path
from typing import cast

import torch

from flowprior.core import rng
from flowprior.flow.losses import grouped_loss
from flowprior.flow.velocity import VelocityMLP
from flowprior.prior.flow_prior import FlowPrior
from flowprior.prior.projection import Projection
from flowprior.toy.config import Study
from flowprior.toy.sessions import open_session
from flowprior.toy.targets import Target2D
from flowprior.training.plan import Optimizer


def fit_flow(cfg: Study, root: Path, target: Target2D) -> FlowPrior:
    """Train the flow of a target; a run that was killed goes on from its last checkpoint.

    Args:
        cfg: Holds sizes, steps and optimiser.
        root: Of the workspace.
        target: What the flow learns; its projection is the identity.
    """
    scale = cfg.scale.flow
    config = {"target": target.name, **scale.model_dump()}
    with open_session("toy_flow", cfg, root, config=config, plan=scale.plan, inputs={}) as session:
        with rng.scoped(cfg.seed, target.name, "init"):
            velocity = VelocityMLP(2, scale.width, scale.depth)
        learner = session.learner("velocity", velocity, Optimizer(**scale.optimizer.model_dump()))
        for step in session.steps():
            draw = session.generator(target.name, step)
            data = target.sample(scale.batch_vectors, draw).to(session.device)
            loss = grouped_loss(learner.module, data, scale.time_groups, draw).mean()
            session.log(step, loss=loss, grad_norm=learner.update(loss))
        session.tracker.finish({})
    identity = Projection(torch.eye(2), 1.0, "identity", cfg.seed)
    return FlowPrior(cast(VelocityMLP, learner.averaged), identity, scale.time_groups)
