"""The exact log-density of a flow, by integrating the divergence along the ODE; Eq. (4), arXiv:2506.05240."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from flowprior import rng
from flowprior.flow.losses import Velocity

EXACT_DIVERGENCE_MAX_DIM = 64


def divergence_exact(
    velocity: Velocity, x: Float[Tensor, "n d"], t: Float[Tensor, "#n"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    """Velocity and tr dv/dx, with one backward pass for each of the d dimensions."""
    with torch.inference_mode(False), torch.enable_grad():
        x, t = x.detach().clone().requires_grad_(True), t.clone()
        v = velocity(x, t) + 0 * x  # so that there is a gradient where v does not depend on x
        trace = torch.zeros_like(v[:, 0])
        for i in range(x.shape[-1]):
            (row,) = torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)
            trace = trace + row[:, i]
    return v.detach(), trace.detach()


def divergence_hutchinson(
    velocity: Velocity,
    x: Float[Tensor, "n d"],
    t: Float[Tensor, "#n"],
    probe: Float[Tensor, "n d"],
) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    """Velocity and an unbiased estimate of tr dv/dx, probe^T (dv/dx) probe, with one backward pass.

    Args:
        velocity: The field.
        x: Points.
        t: Times.
        probe: Independent entries of mean 0 and variance 1; entries of +-1 have the least variance.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x, t, probe = x.detach().clone().requires_grad_(True), t.clone(), probe.clone()
        v = velocity(x, t) + 0 * x  # so that there is a gradient where v does not depend on x
        (vjp,) = torch.autograd.grad(v, x, probe)
    return v.detach(), (vjp * probe).sum(-1).detach()


def log_density(
    velocity: Velocity,
    points: Float[Tensor, "n d"],
    *,
    generator: torch.Generator | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    exact_max_dim: int = EXACT_DIVERGENCE_MAX_DIM,
) -> Float[Tensor, " n"]:
    """Log-density at `points`, in nats, summed over dims, under the flow that starts from N(0, I) at t = 0.

    Solved backwards from t = 1 by torchdiffeq's adaptive dopri5. The divergence is exact up to
    `exact_max_dim` dims; above, one Rademacher probe a vector, held fixed along its path
    (Hutchinson; unbiased).

    Args:
        velocity: The field.
        points: Where to evaluate.
        generator: Draws the probes; unused while the divergence is exact.
        rtol: Relative tolerance of the solver.
        atol: Absolute tolerance of the solver.
        exact_max_dim: The largest d with the exact divergence.
    """
    from torchdiffeq import odeint

    n, d = points.shape
    if not n:
        return points.new_zeros(0)
    divergence: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    if d <= exact_max_dim:

        def divergence(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return divergence_exact(velocity, x, t)

    else:
        probe = rng.uniform((n, d), points, generator).round() * 2 - 1

        def divergence(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return divergence_hutchinson(velocity, x, t, probe)

    def dynamics(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return divergence(state[0], t.reshape(1).to(points.dtype))

    start = (points.detach(), torch.zeros(n, dtype=points.dtype, device=points.device))
    times = torch.tensor([1.0, 0.0], dtype=points.dtype, device=points.device)
    path, integral = odeint(dynamics, start, times, rtol=rtol, atol=atol, method="dopri5")
    noise = path[-1]
    base = -0.5 * noise.square().sum(-1) - 0.5 * d * math.log(2 * math.pi)
    density: Tensor = base + integral[-1]
    return density.detach()
