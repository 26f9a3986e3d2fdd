"""How well a flow fits: on targets that it did not learn from, in numbers and in words."""

import math
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowprior.core import rng
from flowprior.flow.likelihood import log_density
from flowprior.flow.losses import grouped_loss
from flowprior.flow.ode import integrate
from flowprior.flow.path import interpolate
from flowprior.flow.velocity import PreconditionedVelocity
from flowprior.stats.two_sample import classifier_two_sample

Word = Literal["good", "rough", "poor"]
ALIKE, ROUGH = 0.53, 0.6
"""Accuracy of the two-sample test up to which samples are as good as targets, and up to which they are rough."""
OVERFIT = 1.05
"""Held-out over training loss, above which a flow has learned its features by heart."""
TESTED = 2000
"""Targets of the two-sample test, at most."""
DRAWS = 8
NLL_VECTORS = 256
EXACT_DIM = 8
FLOOR_POINTS, FLOOR_TARGETS = 2000, 5000
SAMPLE_STEPS = 50


class FitReport(NamedTuple):
    """What a fit says of itself, by targets that it did not learn from.

    Attributes:
        verdict: good up to an accuracy of 53% and two of its standard deviations, if the density is no worse than the
            Gaussian's; rough up to 60%; else poor.
        advice: What to change; empty if nothing.
        steps: That the weights have learned for; fewer than were asked where the held-out loss rose.
        num_held_out: Targets that were held out.
        held_out_loss: Flow matching loss on them, Eq. (3), mean over dims.
        train_loss: The same on as many that it learned from.
        floor_loss: In expectation no field is below it: the loss of the exact field of at most 5000 targets on these
            themselves.
        gaussian_loss: The same as `held_out_loss`, with equal draws, of the exact flow to the Gaussian of the targets'
            mean and covariance.
        c2st_accuracy: Two-sample test of samples against at most 2000 targets, the held-out ones first; 0.5 is as good
            as it gets.
        c2st_sd: Its standard deviation where nothing differs.
        nll_nats: Mean negative log-density of held-out targets.
        gaussian_nll_nats: That under the Gaussian of the targets' mean and covariance.
    """

    verdict: Word
    advice: str
    steps: int
    num_held_out: int
    held_out_loss: float
    train_loss: float
    floor_loss: float
    gaussian_loss: float
    c2st_accuracy: float
    c2st_sd: float
    nll_nats: float
    gaussian_nll_nats: float

    def __str__(self) -> str:
        lines = [
            f"{self.verdict}: a classifier tells samples from targets in {self.c2st_accuracy:.1%} of the cases "
            f"(50% by guessing, +- {2 * self.c2st_sd:.1%})",
            f"  loss on {self.num_held_out} held-out targets {self.held_out_loss:.4f}, training "
            f"{self.train_loss:.4f}, no flow is below "
            f"{self.floor_loss:.4f}, a Gaussian's is {self.gaussian_loss:.4f}",
            f"  held-out negative log-density {self.nll_nats:.3f} nats, a Gaussian's is {self.gaussian_nll_nats:.3f}",
        ]
        return "\n".join([*lines, f"  what helps: {self.advice}"] if self.advice else lines)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: numbers that are not finite are None."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in self._asdict().items()
        }


def fit_report(
    velocity: PreconditionedVelocity,
    learned: Float[Tensor, "n d"],
    held_out: Float[Tensor, "m d"],
    time_groups: int,
    steps: int,
    seed: int,
) -> FitReport:
    """Measure a trained velocity.

    Args:
        velocity: On the targets' device.
        learned: Targets that it was trained on.
        held_out: Others, at least 20.
        time_groups: Vectors share times in at most so many groups.
        steps: For how many it learned.
        seed: Of the draws.
    """
    held_out_loss, train_loss = (
        _loss(velocity, vectors[: len(held_out)], time_groups, seed)
        for vectors in (held_out, learned)
    )
    facts = velocity.mean, velocity.variances, velocity.axes
    gaussian_loss = _loss(
        PreconditionedVelocity(_Nothing(velocity.dim), *facts), held_out, time_groups, seed
    )
    # Few held-out targets tell little; those that were learned from are as good here.
    real = torch.cat([held_out, learned])[:TESTED]
    noise = rng.normal(tuple(real.shape), real, rng.generator(seed, "fit", "samples"))
    with torch.no_grad():
        samples = integrate(velocity, noise, SAMPLE_STEPS, slowing=True)
    accuracy = 1.0  # of samples that are no numbers
    if samples.isfinite().all():
        accuracy = classifier_two_sample(samples.cpu().numpy(), real.cpu().numpy(), seed)
    some = held_out[:NLL_VECTORS]
    draw = rng.generator(seed, "fit", "nll")
    density = log_density(velocity, some, generator=draw, exact_max_dim=EXACT_DIM)
    nll = -float(density.cpu().double().mean())
    gaussian = _gaussian_nll(velocity, some)
    sd = 0.5 / math.sqrt(2 * len(real))
    verdict = _word(accuracy, sd, nll, gaussian)
    return FitReport(
        verdict,
        _advice(verdict, held_out_loss, train_loss),
        steps,
        len(held_out),
        held_out_loss,
        train_loss,
        _floor(learned, seed),
        gaussian_loss,
        accuracy,
        sd,
        nll,
        gaussian,
    )


class _Nothing(nn.Module):
    """The network of a flow that knows no more than mean and covariance."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x)


def _word(accuracy: float, sd: float, nll: float, gaussian: float) -> Word:
    if accuracy > ROUGH + 2 * sd or not math.isfinite(nll):
        return "poor"
    if accuracy > ALIKE + 2 * sd or nll > gaussian + 0.02 * abs(gaussian) + 0.1:
        return "rough"
    return "good"


def _advice(verdict: Word, held_out_loss: float, train_loss: float) -> str:
    overfit = held_out_loss > OVERFIT * train_loss
    if verdict == "good":
        return ""
    if overfit:
        return "more features; or a smaller width, since it knows those that it learned from better than others"
    return "more steps, then a larger width or depth"


@torch.no_grad()
def _loss(velocity: PreconditionedVelocity, vectors: Tensor, time_groups: int, seed: int) -> float:
    draw = rng.generator(seed, "fit", "report")
    return float(grouped_loss(velocity, vectors.repeat(DRAWS, 1), time_groups, draw).mean())


def _gaussian_nll(velocity: PreconditionedVelocity, vectors: Tensor) -> float:
    away = ((vectors - velocity.mean) @ velocity.axes).square() / velocity.variances
    logs = torch.log(2 * math.pi * velocity.variances)
    return float(0.5 * (away + logs).sum(-1).mean())


@torch.no_grad()
def _floor(targets: Float[Tensor, "n d"], seed: int) -> float:
    """Mean over dims of the spread of data - noise given x_t, if the targets at hand were all that there are.

    In expectation no more than what any field can reach on fresh targets.
    """
    draw = rng.generator(seed, "fit", "floor")
    known = targets[:FLOOR_TARGETS]
    rows = torch.randint(len(known), (FLOOR_POINTS,), generator=draw).to(known.device)
    data = known[rows]
    noise = rng.normal_like(data, draw)
    t = rng.uniform((FLOOR_POINTS,), data, draw).clamp(1e-3, 1 - 1e-3)
    x_t = interpolate(noise, data, t)
    t = t.unsqueeze(-1)
    apart = torch.cdist(x_t / t, known)
    weights = torch.softmax(-0.5 * (apart * t / (1 - t)).square(), -1)
    return float(((data - weights @ known) / (1 - t)).square().mean())


def stored_report(facts: Any) -> FitReport | None:
    """A report as a manifest has it; None for priors without."""
    if not isinstance(facts, dict):
        return None
    found: dict[str, Any] = {key: math.nan if x is None else x for key, x in facts.items()}
    return FitReport(**found)
