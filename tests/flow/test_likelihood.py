"""Log-densities of flows whose density is known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from flowprior.core import rng
from flowprior.flow.likelihood import (
    EXACT_DIVERGENCE_MAX_DIM,
    divergence_exact,
    divergence_hutchinson,
    log_density,
)
from flowprior.flow.losses import Velocity
from flowprior.flow.velocity import VelocityMLP
from flowprior.toy.closed_forms import gaussian_velocity

LIKE = torch.zeros(1, dtype=torch.float64)
MATRIX = torch.tensor([[1.0, 2.0, 0.0], [-3.0, 0.5, 1.0], [0.7, -1.0, -2.0]], dtype=torch.float64)


def normal(*shape: int, tag: str = "x") -> Tensor:
    """Fixed standard normal numbers, float64."""
    return rng.normal(shape, LIKE, rng.generator(0, tag))


def linear(x: Tensor, t: Tensor) -> Tensor:
    """A velocity with the Jacobian (1 + t) MATRIX."""
    return (1 + t.unsqueeze(-1)) * (x @ MATRIX.T)


def correlated() -> tuple[Velocity, Tensor]:
    """The exact velocity of N(0, covariance) with full covariance, and that covariance: a rotated diagonal one."""
    rotation = torch.linalg.qr(MATRIX).Q
    std = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    straight = gaussian_velocity(0.0, std)
    covariance = rotation @ torch.diag(std**2) @ rotation.T
    return lambda x, t: straight(x @ rotation, t) @ rotation.T, covariance


# --- divergence -------------------------------------------------------------------------------------


def test_the_exact_divergence_is_the_trace() -> None:
    """Of a linear field, (1 + t) tr MATRIX at every point; the velocity comes along unchanged."""
    x, t = normal(5, 3), torch.tensor([0.25], dtype=torch.float64)
    velocity, trace = divergence_exact(linear, x, t)
    assert torch.equal(velocity, linear(x, t))
    torch.testing.assert_close(trace, torch.full((5,), 1.25 * -0.5, dtype=torch.float64))


def test_the_exact_divergence_of_a_network_is_that_of_its_jacobian() -> None:
    """Against torch.func, for a network with random weights."""
    with rng.scoped(0):
        net = VelocityMLP(3, width=8, depth=1).double()
        torch.nn.init.normal_(net.output.weight)
    x, t = normal(4, 3), torch.full((4,), 0.3, dtype=torch.float64)
    jacobians = [torch.func.jacrev(lambda p, s=s: net(p, s))(p) for p, s in zip(x, t, strict=True)]
    _, trace = divergence_exact(net, x, t)
    torch.testing.assert_close(trace, torch.stack([j.trace() for j in jacobians]).detach())


def test_hutchinson_is_exact_for_a_diagonal_jacobian() -> None:
    """With entries of +-1 the probe drops out, whatever its signs."""
    velocity = gaussian_velocity(0.3, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))
    x, t = normal(5, 3), torch.tensor([0.6], dtype=torch.float64)
    expected = divergence_exact(velocity, x, t)
    found = divergence_hutchinson(velocity, x, t, normal(5, 3, tag="probe").sign())
    torch.testing.assert_close(found, expected)


def test_hutchinson_is_right_on_average() -> None:
    """Over 20 000 probes of one point, within five standard errors of the trace."""
    n = 20_000
    x, t = normal(1, 3).expand(n, 3), torch.zeros(1, dtype=torch.float64)
    _, traces = divergence_hutchinson(linear, x, t, normal(n, 3, tag="probe").sign())
    assert traces.mean().item() == pytest.approx(-0.5, abs=5 * traces.std().item() / math.sqrt(n))


def test_divergences_leave_no_graph_and_work_without_gradients() -> None:
    """They are taken for evaluation, also inside `no_grad`."""
    x, t = normal(2, 3), torch.zeros(1, dtype=torch.float64)
    with torch.no_grad():
        results = [
            *divergence_exact(linear, x, t),
            *divergence_hutchinson(linear, x, t, torch.ones_like(x)),
        ]
    assert not any(result.requires_grad for result in results)


# --- density ----------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=8)
@given(mean=st.floats(-2, 2), std=st.floats(0.3, 3), dim=st.integers(1, 4))
def test_the_density_of_an_exact_gaussian_flow_is_the_gaussian(
    mean: float, std: float, dim: int
) -> None:
    """Against scipy, in nats, summed over dims."""
    points = mean + std * normal(6, dim)
    found = log_density(gaussian_velocity(mean, std), points)
    exact = stats.norm(mean, std).logpdf(points.numpy()).sum(-1)
    # The solver's rtol = atol = 1e-5 a step, a few dozen steps, up to 4 dims.
    torch.testing.assert_close(found, torch.from_numpy(exact), rtol=1e-4, atol=1e-3)


def test_the_density_of_a_correlated_gaussian_is_right() -> None:
    """With a full Jacobian, so that the trace is not all there is."""
    velocity, covariance = correlated()
    points = normal(6, 3)
    exact = stats.multivariate_normal(cov=covariance.numpy()).logpdf(points.numpy())
    torch.testing.assert_close(
        log_density(velocity, points), torch.from_numpy(exact), rtol=1e-4, atol=1e-3
    )


def test_tighter_tolerances_come_closer() -> None:
    """Rtol and atol reach the solver."""
    velocity, points = gaussian_velocity(1.0, 0.3), normal(6, 2)
    exact = torch.from_numpy(stats.norm(1.0, 0.3).logpdf(points.numpy()).sum(-1))
    loose = (log_density(velocity, points, rtol=1e-3, atol=1e-3) - exact).abs().max()
    tight = (log_density(velocity, points, rtol=1e-8, atol=1e-8) - exact).abs().max()
    assert tight < 1e-5
    assert tight < loose / 10


def test_the_density_of_a_network_has_a_mass_of_one() -> None:
    """Whatever the weights, a flow is a distribution: the integral over a wide grid is 1."""
    with rng.scoped(3):
        net = VelocityMLP(1, width=16, depth=1).double()
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    grid = torch.linspace(-12, 12, 801, dtype=torch.float64).unsqueeze(-1)
    density = log_density(net, grid, rtol=1e-6, atol=1e-6).exp()
    # A density that is not the base's, smooth on the scale of the grid, so the sum is the integral to 1e-4.
    base = torch.from_numpy(stats.norm.pdf(grid.squeeze(-1).numpy()))
    assert (density - base).abs().max() > 0.05
    assert density.sum().item() * 24 / 800 == pytest.approx(1, abs=1e-3)


def test_hutchinson_is_used_above_the_limit_and_is_exact_for_a_diagonal_flow() -> None:
    """65 dims: a diagonal Gaussian comes out right with one backward pass an evaluation."""
    dim = EXACT_DIVERGENCE_MAX_DIM + 1
    std = torch.linspace(0.5, 2.0, dim, dtype=torch.float64)
    points = std * normal(4, dim)
    found = log_density(gaussian_velocity(0.0, std), points, generator=rng.generator(0))
    exact = stats.norm(0, std.numpy()).logpdf(points.numpy()).sum(-1)
    torch.testing.assert_close(found, torch.from_numpy(exact), rtol=1e-4, atol=1e-2)


def test_the_estimated_density_is_right_on_average() -> None:
    """Over 3 000 probes of one point under a correlated flow, within five standard errors of the exact one."""
    velocity, _ = correlated()
    n = 3000
    point = normal(1, 3)
    exact = log_density(velocity, point).item()
    estimates = log_density(
        velocity, point.expand(n, 3), generator=rng.generator(0), exact_max_dim=2
    )
    assert estimates.std() > 0.05
    # The solver adds its own 1e-4 or so.
    tolerance = 5 * estimates.std().item() / math.sqrt(n) + 1e-3
    assert estimates.mean().item() == pytest.approx(exact, abs=tolerance)


def test_the_probes_come_from_the_generator() -> None:
    """Equal generators give equal estimates; others do not; the exact density needs none."""
    velocity, _ = correlated()
    points = normal(6, 3)

    def estimate(seed: int, limit: int) -> Tensor:
        return log_density(velocity, points, generator=rng.generator(seed), exact_max_dim=limit)

    assert torch.equal(estimate(1, limit=2), estimate(1, limit=2))
    assert not torch.allclose(estimate(1, limit=2), estimate(2, limit=2), atol=1e-2)
    assert torch.equal(estimate(1, limit=3), estimate(2, limit=3))


def test_a_density_has_no_gradient() -> None:
    """It is a measurement; points that learn get none."""
    points = normal(2, 2).requires_grad_()
    assert not log_density(gaussian_velocity(0.0, 2.0), points).requires_grad


@pytest.mark.parametrize("limit", [0, 64])
def test_a_velocity_that_does_not_depend_on_x_only_shifts_the_noise(limit: int) -> None:
    """A constant c moves N(0, I) to N(c, I); its divergence is zero, exact or estimated."""
    points = normal(4, 2)
    found = log_density(
        lambda x, t: torch.full_like(x, 1.5),
        points,
        generator=rng.generator(0),
        exact_max_dim=limit,
    )
    exact = stats.norm(1.5, 1).logpdf(points.numpy()).sum(-1)
    torch.testing.assert_close(found, torch.from_numpy(exact), rtol=1e-4, atol=1e-3)
