"""What the scripts of the study share: a target's flow, free points that an objective moves, and their densities."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowprior.alignment.fake_flow import FakeFlow
from flowprior.alignment.registry import ObjectiveName, build_objective
from flowprior.config import params
from flowprior.core import rng
from flowprior.core.codes import Codes
from flowprior.core.rng import Draw
from flowprior.flow.losses import alignment_loss, grouped_loss
from flowprior.flow.path import stratified_times
from flowprior.flow.velocity import VelocityMLP
from flowprior.prior.flow_prior import FlowPrior
from flowprior.prior.projection import Projection
from flowprior.stats.match import collapse_signs, match_report
from flowprior.toy.config import NEIGHBOURS, Study
from flowprior.toy.modes import mode_report
from flowprior.toy.targets import Target2D, kernel_log_density
from flowprior.training.plan import Optimizer, Plan
from flowprior.training.session import Session

LOOKS = 16
"""Looks at the points over an optimisation, evenly over log-steps."""
CURVE_DRAWS = 64


class Moved(NamedTuple):
    """Free points after their optimisation.

    Attributes:
        steps: When was looked, ascending, from 0.
        history: The points at each look, [looks, n, 2]; the last are the result.
        curve: A row for each look: step, alignment loss, NLL.
        seconds_per_step: Of the optimisation.
    """

    steps: list[int]
    history: Tensor
    curve: list[dict[str, float]]
    seconds_per_step: float


class FreePoints(nn.Module):
    """Points from N(0, I) with nothing but an objective to move them, and where they were at each look."""

    def __init__(self, count: int, looks: int, generator: torch.Generator) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(count, 2, generator=generator))
        self.history: Tensor
        self.register_buffer("history", torch.zeros(looks, count, 2))


def fit_flow(cfg: Study, root: Path, target: Target2D) -> FlowPrior:
    """Train the flow of a target on fresh samples of it."""
    scale = cfg.scale.flow
    plan = Plan(scale.steps, scale.log_steps, scale.checkpoint_steps, scale.precision)
    config = {"seed": cfg.seed, "target": target.name, **scale.model_dump()}
    with Session(
        "toy_flow",
        config=config,
        inputs={},
        seed=cfg.seed,
        plan=plan,
        root=params.state_root(root),
    ) as session:
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
    return FlowPrior(learner.averaged, identity, scale.time_groups)


def move_points(
    cfg: Study, root: Path, target: Target2D, prior: FlowPrior, objective_name: ObjectiveName
) -> Moved:
    """Let an objective move free points for as many steps as the preset says."""
    scale = cfg.scale.points
    plan = Plan(scale.steps, scale.log_steps, scale.checkpoint_steps, "fp32")
    pull = cfg.align.model_dump() | {"objective": objective_name}
    config = {"seed": cfg.seed, "target": target.name, **pull, **scale.model_dump()}
    looks = look_steps(scale.steps)
    nll = reference_nll(cfg, target)
    with Session(
        "toy_points",
        config=config,
        inputs={"flow": prior_digest(prior)},
        seed=cfg.seed,
        plan=plan,
        root=params.state_root(root),
    ) as session:
        prior.to(session.device)
        free = FreePoints(scale.count, len(looks), session.generator(target.name, "points"))
        learner = session.learner("points", free, adam(scale.lr))
        objective = build_objective(
            objective_name,
            prior,
            target.sample,
            num_draws=cfg.align.num_draws,
            t_max=cfg.align.t_max,
        )
        fake_flow = FakeFlow(
            session, objective, num_updates=cfg.align.fake_updates, lr=cfg.align.fake_lr
        )

        def look(step: int) -> None:
            index = looks.index(step)
            now = free.points.detach()
            free.history[index] = now
            losses = common_loss(prior, now, CURVE_DRAWS, cfg.seed)
            row = {"alignment_loss": float(losses.mean()), "nll": float(nll(now.cpu()).mean())}
            session.record("points", step, row)

        for step in session.steps():
            if step == 0:
                look(0)
            draw = session.generator(target.name, "step", step)
            latents = free.points.view(scale.time_groups, -1, 2)
            codes = Codes(latents, latents, None)
            randomness = Draw(draw, scale.time_groups, session.share, session.gather)
            loss = objective(codes, randomness)
            if loss.requires_grad:
                learner.update(loss)
            session.log(step, objective=loss, **fake_flow.follow(codes, step, randomness))
            if step + 1 in looks:
                look(step + 1)
        session.tracker.finish({})
        return Moved(
            looks,
            free.history.detach().cpu(),
            session.curves["points"],
            session.seconds / scale.steps,
        )


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


def prior_digest(prior: FlowPrior) -> str:
    """Fixes the flow's weights."""
    from flowprior.core.io import digest

    state = prior.velocity.state_dict()
    return digest({name: tensor.cpu().numpy().tobytes().hex() for name, tensor in state.items()})


@torch.no_grad()
def common_loss(prior: FlowPrior, points: Tensor, num_draws: int, seed: int) -> Tensor:
    """The alignment loss of each point, [n], with the same draws for all of them: a smooth function of the point."""
    draw = rng.generator(seed, "common", num_draws)
    noise = torch.randn(num_draws, 1, 2, generator=draw).to(points)
    t = stratified_times(num_draws, torch.empty(()), draw).to(points)
    parts = [
        alignment_loss(
            prior.velocity,
            part.expand(num_draws, *part.shape),
            noise.expand(num_draws, len(part), 2),
            t,
        ).mean(0)
        for part in points.split(4096)
    ]
    return torch.cat(parts)


class ReferenceNLL:
    """Negative log-density of a target in nats: exact where there is a closed form, else of a kernel estimate."""

    def __init__(self, target: Target2D, samples: Tensor, bandwidth: float) -> None:
        self._target = target
        self._samples = samples
        self._bandwidth = bandwidth

    def __call__(self, points: Tensor) -> Tensor:
        """For each of the points [n, 2]."""
        if self._target.density is not None:
            return -self._target.density.log_density(points)
        return -kernel_log_density(points, self._samples, self._bandwidth)


def reference_nll(cfg: Study, target: Target2D) -> ReferenceNLL:
    """The density that a target's NLL is read from; the two kinds never meet in one figure."""
    scale = cfg.scale.density
    count = 0 if target.density is not None else scale.kde_samples
    samples = target.sample(count, rng.generator(cfg.seed, target.name, "kde"))
    return ReferenceNLL(target, samples, scale.bandwidth)


def judge(cfg: Study, target: Target2D, points: Tensor) -> dict[str, float | int | str]:
    """How the points compare with fresh samples of the target; whether they look collapsed."""
    fresh, control = (
        target.sample(len(points), rng.generator(cfg.seed, target.name, name))
        for name in ("fresh", "control")
    )
    nll = reference_nll(cfg, target)
    mean_nll, target_nll = float(nll(points).mean()), float(nll(fresh).mean())
    report = match_report(
        points.numpy(), fresh.numpy(), control.numpy(), seed=cfg.seed, k=NEIGHBOURS
    )
    signs = collapse_signs(report, mean_nll - target_nll)
    metrics: dict[str, float | int | str] = {
        **report,
        "nll": mean_nll,
        "nll_targets": target_nll,
        "nll_gap": mean_nll - target_nll,
        "density": "kde" if target.density is None else "exact",
        "collapsed": int(bool(signs)),
    }
    if target.density is not None:
        metrics |= mode_report(points, target.density.means, target.density.std)
    return metrics
