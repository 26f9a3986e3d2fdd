"""How well do the paper's loss, its bound and the weighted loss rank the exact likelihood? On closed-form fields."""

import math

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.quasirandom import SobolEngine

from flowprior.core import rng
from flowprior.flow.likelihood import (
    evidence_bound,
    importance_times,
    log_density,
    path_divergence,
    squared_error,
)
from flowprior.toy.closed_forms import gaussian_alignment_loss, gaussian_velocity
from tests.toy.test_closed_forms import five_modes

NUM_DRAWS = 2048


def low_noise_draws(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Noise [k, n, d] and quantiles of time [k, 1], the same for every point, from a scrambled Sobol sequence."""
    u = SobolEngine(d + 1, scramble=True, seed=0).draw(NUM_DRAWS).double().clamp(1e-6, 1 - 1e-6)
    return torch.special.ndtri(u[:, 1:])[:, None].expand(NUM_DRAWS, n, d), u[:, :1]


def target_points(n: int) -> Tensor:
    """Samples of the five modes."""
    draw, modes = rng.generator(3), five_modes()
    rows = torch.randint(5, (n,), generator=draw)
    return modes.means[rows] + modes.std * torch.randn(n, 2, generator=draw, dtype=torch.float64)


def test_the_divergence_on_straight_paths_is_minus_d_log_std_for_a_gaussian() -> None:
    """C(y) = -d log s for every y: the slope of the field is half the derivative of log((1-t)^2 + t^2 s^2)."""
    points = torch.tensor([[0.0, 0.0, 0.0], [2.0, -1.0, 5.0]], dtype=torch.float64)
    noise, t = low_noise_draws(2, 3)
    found = path_divergence(gaussian_velocity(0.0, 0.5), points, noise, t)
    # A Sobol sequence of 2048 integrates the smooth slope in t to better than 1e-3.
    assert found == pytest.approx(torch.full((2,), -3 * math.log(0.5)).double(), abs=5e-3)


def test_the_squared_error_is_d_times_the_closed_form() -> None:
    """Sum over dims, where the losses take the mean."""
    points = torch.tensor([[0.0, 0.0], [2.0, -1.0]], dtype=torch.float64)
    noise, t = low_noise_draws(2, 2)
    found = squared_error(gaussian_velocity(0.3, 0.5), points, noise, t)
    exact = 2 * gaussian_alignment_loss(points, 0.3, 0.5)
    assert torch.allclose(found, exact, rtol=0.02)


def test_the_bound_is_divergence_minus_weighted_error() -> None:
    """Proposition 1's right-hand side, put together from its parts."""
    points = target_points(5)
    noise, t = low_noise_draws(5, 2)
    velocity = five_modes().velocity
    parts = path_divergence(velocity, points, noise, t) - 0.5 * squared_error(
        velocity, points, noise, t
    )
    assert torch.allclose(evidence_bound(velocity, points, noise, t, weight=0.5), parts)


@pytest.mark.parametrize("t_max", [0.5, 0.9, 0.99])
def test_weighted_draws_integrate_the_weight(t_max: float) -> None:
    """The mean factor is the integral of t / (1 - t) up to t_max, -t_max - log(1 - t_max)."""
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    t, factor = importance_times(u, t_max)
    assert t.min() > 0
    assert t.max() < t_max
    assert float(factor.mean()) == pytest.approx(-t_max - math.log(1 - t_max), rel=1e-4)


@pytest.mark.parametrize("t_max", [0.0, 1.0, -1.0, 1.5, math.nan])
def test_a_weight_that_diverges_is_an_error(t_max: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        importance_times(torch.rand(3), t_max)


def test_the_ode_finds_the_density_of_the_mixture() -> None:
    """The exact log-density by divergence along the path against the closed form."""
    modes, points = five_modes(), target_points(20)
    found = log_density(modes.velocity, points, rtol=1e-8, atol=1e-8)
    assert torch.allclose(found, modes.log_density(points), atol=1e-5)


def test_on_its_own_target_the_alignment_loss_ranks_likelihood_badly_and_the_weighted_loss_well() -> (
    None
):
    """Spearman's coefficients with the exact NLL on target samples, for a perfect flow."""
    modes, points = five_modes(), target_points(250)
    nll = -modes.log_density(points)
    noise, u = low_noise_draws(250, 2)
    plain = squared_error(modes.velocity, points, noise, u)
    bounded = plain - path_divergence(modes.velocity, points, noise, u)
    times, factor = importance_times(u, 0.99)
    weighted = squared_error(modes.velocity, points, noise, times, factor.squeeze(-1))
    found = [float(spearmanr(loss, nll).statistic) for loss in (plain, bounded, weighted)]
    assert found[0] == pytest.approx(0.50, abs=0.1)
    assert found[1] > 0.93
    assert found[2] > 0.98
    slope = torch.linalg.lstsq(
        torch.stack([nll, torch.ones_like(nll)], -1), weighted.unsqueeze(-1)
    ).solution[0]
    assert float(slope) == pytest.approx(1.0, abs=0.05)


def test_proposition_1_does_not_bound_the_likelihood() -> None:
    """For a perfect flow the "lower bound" lies above the exact log-density at a good part of the target's samples."""
    modes, points = five_modes(), target_points(100)
    noise, t = low_noise_draws(100, 2)
    excess = evidence_bound(modes.velocity, points, noise, t) - modes.log_density(points)
    assert (excess > 0.5).double().mean() > 0.1
