"""A fixed-step solver for the stochastic equation whose marginals are those of dx/dt = v(x, t)."""

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from flowprior.core import rng
from flowprior.flow.losses import Velocity


def integrate_sde(
    velocity: Velocity,
    x: Float[Tensor, "*batch d"],
    num_steps: int,
    generator: torch.Generator | None,
    churn: float | int = 1.0,
    temperature: float | int = 1.0,
    start: float = 0.0,
    end: float = 1.0,
) -> Float[Tensor, "*batch d"]:
    """Carry `x` from time `start` to time `end` in `num_steps` steps of Euler and Maruyama.

    On the straight path E[noise | x] = x - t v, so the score is -(x - t v) / (1 - t). With the
    diffusion 2 churn (1 - t) the score's pole at the data goes: dx = (v - churn (x - t v)) dt +
    sqrt(2 churn (1 - t)) dW. Any churn has the marginals of the ODE, and 0 is the ODE; SiT,
    arXiv:2401.08740, §2.4. The step that arrives at the data adds no noise.

    Args:
        velocity: The field; t = 0 is noise, t = 1 is data.
        x: Where to start.
        num_steps: Equal steps, one evaluation each.
        generator: Draws the noise.
        churn: How much noise is exchanged, at least 0.
        temperature: Factor on the noise that is added; below 1 narrows what is drawn.
        start: Time of `x`.
        end: Time of the answer.

    Raises:
        ValueError: `num_steps` is not positive or `churn` is negative.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, found {num_steps}")
    if churn < 0:
        raise ValueError(f"churn must be at least 0, found {churn}")
    times = torch.linspace(start, end, num_steps + 1, dtype=torch.float64, device="cpu").tolist()
    for now, then in pairwise(times):
        t = torch.full((1,) * (x.ndim - 1), now, dtype=x.dtype, device=x.device)
        slope = velocity(x, t)
        stepped = x + (then - now) * (slope - churn * (x - now * slope))
        if then < 1:
            spread = temperature * math.sqrt(2 * churn * (1 - now) * (then - now))
            stepped = stepped + spread * rng.normal_like(x, generator)
        x = stepped
    return x
