"""Free points in the plane, moved by nothing but an objective."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowprior.alignment.config import Pull
from flowprior.alignment.in_training import fresh_draws, open_term
from flowprior.core.codes import Codes
from flowprior.core.io import digest, save_tensors
from flowprior.core.rng import Draw
from flowprior.prior.flow_prior import FlowPrior
from flowprior.toy.config import Study
from flowprior.toy.densities import reference_nll
from flowprior.toy.maps import common_loss
from flowprior.toy.sessions import open_session
from flowprior.toy.targets import Target2D
from flowprior.training.plan import Optimizer

LOOKS = 16
"""Looks at the points over an optimisation, evenly over log-steps."""
CURVE_DRAWS = 64
"""Draws of noise and time for the alignment loss at a look, the same at all looks."""


class MovedPoints(NamedTuple):
    """Free points after their optimisation.

    Attributes:
        steps: When was looked, ascending, from 0.
        history: The points at each look, [looks, n, 2]; the last are the result.
        curve: A row for each look: step, alignment loss (mean over dims and points), mean NLL (nats).
        seconds: Of the optimisation.
        began_at: Commit of other code that began it, if any; see `flowprior.training.session.Session`.
    """

    steps: list[int]
    history: Tensor
    curve: list[dict[str, float]]
    seconds: float
    began_at: str | None

    def save(self, path: Path) -> None:
        """Write `history` and `steps` as safetensors."""
        save_tensors(path, {"history": self.history, "steps": torch.tensor(self.steps)})


class FreePoints(nn.Module):
    """Points from N(0, I) with nothing but an objective to move them, and where they were at each look.

    Args:
        count: How many.
        looks: How many looks there will be.
        generator: Draws where they start.
    """

    def __init__(self, count: int, looks: int, generator: torch.Generator) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(count, 2, generator=generator))
        self.history: Tensor
        self.register_buffer("history", torch.zeros(looks, count, 2))


def move_points(
    cfg: Study, root: Path, target: Target2D, prior: FlowPrior, pull: Pull, script: str
) -> MovedPoints:
    """Let an objective move free points for as many steps as the preset says; a killed run goes on.

    Args:
        cfg: Holds counts, steps and rate.
        root: Of the workspace.
        target: What the objective may draw from, and the NLL is of.
        prior: The target's flow; it is moved to the session's device and stays there.
        pull: The objective and its settings.
        script: Name of the script that asks; what it left half done is not taken up by another.
    """
    scale = cfg.scale.points
    looks = look_steps(scale.steps)
    nll = reference_nll(cfg, target)
    with open_session(
        "toy_points",
        cfg,
        root,
        config={
            "script": script,
            "target": target.name,
            "align": pull.model_dump(),
            **scale.model_dump(),
        },
        plan=scale.plan,
        inputs={"flow": weights_digest(prior)},
    ) as session:
        prior.to(session.device)
        free = FreePoints(scale.count, len(looks), session.generator(target.name, "points"))
        learner = session.learner("points", free, adam(scale.lr))
        term = open_term(session, prior, pull, target.sample)

        def look(step: int) -> None:
            now = free.points.detach()
            free.history[looks.index(step)] = now
            losses = common_loss(prior.velocity, now, CURVE_DRAWS, cfg.seed)
            row = {"alignment_loss": float(losses.mean()), "nll": float(nll(now.cpu()).mean())}
            session.record("points", step, row)

        for step in session.steps():
            if step == 0:
                look(0)
            draw = session.generator(target.name, "step", step)
            latents = free.points.view(scale.time_groups, -1, 2)
            codes = Codes(latents, latents, None)
            randomness = Draw(draw, scale.time_groups, session.share, session.gather)
            loss = term(codes, draw=randomness)
            if loss.requires_grad:  # `none` has no gradient
                learner.update(loss)
            followed = term.follow(codes, fresh_draws(session, step, randomness))
            session.log(step, objective=loss, **followed)
            if step + 1 in looks:
                look(step + 1)
        session.tracker.finish({})
        history, curve = free.history.detach().cpu(), session.curves["points"]
        return MovedPoints(looks, history, curve, session.seconds, session.began_at)


def adam(lr: float) -> Optimizer:
    """The paper's Adam for the points: nothing but a rate."""
    return Optimizer(
        lr=lr,
        warmup_steps=0,
        schedule="constant",
        beta2=0.999,
        weight_decay=0.0,
        max_grad_norm=1e6,
        ema_decay=0.0,
    )


def look_steps(num_steps: int) -> list[int]:
    """0, then steps evenly spaced in their logarithm up to the last."""
    spaced = torch.logspace(0, torch.tensor(float(num_steps)).log10().item(), LOOKS - 1)
    return sorted({0, num_steps, *(int(step) for step in spaced.round().tolist())})


def weights_digest(prior: FlowPrior) -> str:
    """Sha256 of the flow's weights, equal for a flow that was just trained and one that was loaded."""
    state = prior.velocity.state_dict()
    return digest({name: tensor.cpu().numpy().tobytes().hex() for name, tensor in state.items()})
