"""Densities of a flow: exact (Eq. (4)), bounded on straight paths (Eq. (6), (10)), weighted; arXiv:2506.05240.

All in nats, summed over dims.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from flowprior.core import rng
from flowprior.flow.losses import Velocity, flow_matching_loss
from flowprior.flow.path import interpolate

EXACT_DIVERGENCE_MAX_DIM = 64
PATH_VECTORS = 16_384
"""Points on paths that `path_divergence` looks at together; bounds its memory."""


def divergence_exact(
    velocity: Velocity, x: Float[Tensor, "*batch d"], t: Float[Tensor, "*#batch"]
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch"]]:
    """Velocity and tr dv/dx, with one backward pass for each of the d dimensions."""
    with torch.inference_mode(False), torch.enable_grad():
        x, t = x.detach().clone().requires_grad_(True), t.clone()
        v = velocity(x, t) + 0 * x  # so that there is a gradient where v does not depend on x
        trace = torch.zeros_like(v[..., 0])
        for i in range(x.shape[-1]):
            (row,) = torch.autograd.grad(v[..., i].sum(), x, retain_graph=True)
            trace = trace + row[..., i]
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


def solver_dtype(device: torch.device) -> torch.dtype:
    """Precision of the solver's own times and step sizes: float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


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
    options = {"dtype": solver_dtype(points.device)}
    path, integral = odeint(
        dynamics, start, times, rtol=rtol, atol=atol, method="dopri5", options=options
    )
    noise = path[-1]
    base = -0.5 * noise.square().sum(-1) - 0.5 * d * math.log(2 * math.pi)
    density: Tensor = base + integral[-1]
    return density.detach()


def path_divergence(
    velocity: Velocity,
    points: Float[Tensor, "n d"],
    noise: Float[Tensor, "k n d"],
    t: Float[Tensor, "#k #n"],
    weights: Float[Tensor, " k"] | None = None,
) -> Float[Tensor, " n"]:
    """C(y) = -E tr dv/dx on the straight paths that end in the points; Eq. (10), arXiv:2506.05240.

    The mean over k draws of noise and time, with the exact divergence.

    Args:
        velocity: The field.
        points: Where the paths end.
        noise: Where they start.
        t: Where on the path to look.
        weights: Of each draw; 1 by default.
    """
    total = torch.zeros_like(points[:, 0])
    size = max(1, PATH_VECTORS // max(1, len(points)))
    times = t.expand(len(noise), -1)
    shares = torch.ones_like(noise[:, 0, 0]) if weights is None else weights
    draws = zip(noise.split(size), times.split(size), shares.split(size), strict=True)
    for start, time, share in draws:
        x_t = interpolate(start, points.expand_as(start), time)
        total += share @ divergence_exact(velocity, x_t, time)[1]
    return -total / len(noise)


def squared_error(
    velocity: Velocity,
    points: Float[Tensor, "n d"],
    noise: Float[Tensor, "k n d"],
    t: Float[Tensor, "#k #n"],
    weights: Float[Tensor, " k"] | None = None,
) -> Float[Tensor, " n"]:
    """L(y), the mean over k draws of w |v(x_t, t) - (y - noise)|^2, summed over dims; Eq. (5), arXiv:2506.05240.

    Args:
        velocity: The field.
        points: y.
        noise: N(0, I).
        t: Times.
        weights: w of each draw; 1 by default.
    """
    losses = points.shape[-1] * flow_matching_loss(velocity, points.expand_as(noise), noise, t)
    return (losses if weights is None else weights.unsqueeze(-1) * losses).mean(0)


def evidence_bound(
    velocity: Velocity,
    points: Float[Tensor, "n d"],
    noise: Float[Tensor, "k n d"],
    t: Float[Tensor, "#k #n"],
    weight: float = 1.0,
) -> Float[Tensor, " n"]:
    """C(y) - weight L(y), which Proposition 1 claims to bound the log-density from below; Eq. (6), arXiv:2506.05240.

    Whether it does is a question to put to numbers: the proposition leaves out the term that couples both.
    """
    return path_divergence(velocity, points, noise, t) - weight * squared_error(
        velocity, points, noise, t
    )


def importance_times(
    u: Float[Tensor, "*batch"], t_max: float
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Times for the weight w(t) = t / (1 - t) on (0, t_max), and the weight left on each draw.

    Times are uniform in log(t / (1 - t)) from -12 up, where the weighted error varies least; the factor on a draw is
    w(t) over its density, t^2 times the range of the logit. With it, `squared_error` of a perfect flow is the negative
    log-density of the point blurred by the noise left at t_max, up to a constant (Kong et al., arXiv:2302.03792).

    Args:
        u: U(0, 1), or its quantiles.
        t_max: Below 1, where the weight diverges.

    Raises:
        ValueError: t_max outside (0, 1).
    """
    if not 0 < t_max < 1:
        raise ValueError(f"t_max must lie between 0 and 1, found {t_max}")
    high = math.log(t_max / (1 - t_max))
    low = -max(12.0, high)
    t = torch.sigmoid(low + (high - low) * u)
    return t, (high - low) * t.square()
