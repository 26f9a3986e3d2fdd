"""Fixed-step solvers for dx/dt = v(x, t)."""

from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flowprior.flow.losses import Velocity

Solver = Literal["euler", "heun"]


def integrate(
    velocity: Velocity,
    x: Float[Tensor, "*batch d"],
    num_steps: int,
    solver: Solver = "heun",
    start: float = 0.0,
    end: float = 1.0,
    slowing: bool = False,
) -> Float[Tensor, "*batch d"]:
    """Carry `x` from time `start` to time `end` in `num_steps` steps.

    The steps are equal, or with `slowing` they shrink towards the end, where narrow data needs small ones: times are
    quadratic, the last step is 1 / num_steps^2 of the whole. Euler costs one evaluation a step and has order 1; Heun
    (the explicit trapezoid) costs two and has order 2.

    Raises:
        ValueError: `num_steps` is not positive or the solver is unknown.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, found {num_steps}")
    if solver not in ("euler", "heun"):
        raise ValueError(f"unknown solver {solver!r}; use 'euler' or 'heun'")
    share = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64, device="cpu")
    if slowing:
        share = 1 - (1 - share).square()
    times = (start + (end - start) * share).tolist()
    for now, then in pairwise(times):
        slope = velocity(x, _constant(now, x))
        stepped = x + (then - now) * slope
        if solver == "heun":
            slope = (slope + velocity(stepped, _constant(then, x))) / 2
            stepped = x + (then - now) * slope
        x = stepped
    return x


def _constant(time: float, x: Tensor) -> Tensor:
    """`time` in a shape that broadcasts to x.shape[:-1] and lets a velocity embed it once."""
    return torch.full((1,) * (x.ndim - 1), time, dtype=x.dtype, device=x.device)
