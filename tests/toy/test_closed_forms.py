"""The closed forms for Gaussian targets, derived once more in another way."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowprior.core import rng
from flowprior.toy.closed_forms import GaussianMixture, gaussian_alignment_loss, gaussian_velocity

EXACT = settings(deadline=None, derandomize=True, max_examples=50)
MEANS, STDS = st.floats(-3, 3), st.floats(0.2, 4)


def float64(*values: float) -> torch.Tensor:
    """A vector in double precision."""
    return torch.tensor(values, dtype=torch.float64)


@EXACT
@given(mean=MEANS, std=STDS, t=st.floats(0, 1), x=st.floats(-5, 5))
def test_the_velocity_is_the_expected_displacement_given_the_point(
    mean: float, std: float, t: float, x: float
) -> None:
    """E[data - noise | x_t = x], from the regression of two jointly Gaussian numbers on their mixture."""
    variance = (1 - t) ** 2 + t**2 * std**2
    data = mean + t * std**2 / variance * (x - t * mean)
    noise = (1 - t) / variance * (x - t * mean)
    found = gaussian_velocity(mean, std)(float64(x), torch.tensor(t, dtype=torch.float64))
    # Same quantity, another order of rounding; the terms reach std^2 / 0.04 * 8.
    assert found.item() == pytest.approx(data - noise, rel=1e-10, abs=1e-10)


@EXACT
@given(mean=MEANS, std=STDS)
def test_the_velocity_points_home_at_both_ends(mean: float, std: float) -> None:
    """At t = 0 it is mean - x, at t = 1 it is x: the other end of the path is then independent of x."""
    x = float64(-2.0, 0.5, 3.0)
    velocity = gaussian_velocity(mean, std)
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    torch.testing.assert_close(velocity(x, zero), mean - x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(velocity(x, one), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "bend", [lambda x, t: x, lambda x, t: t, lambda x, t: x * t**2, lambda x, t: x**2]
)
def test_no_other_velocity_has_a_smaller_loss(bend) -> None:
    """Flow matching is a regression: any change to the velocity, up or down, costs eps^2 E[bend^2]."""
    mean, std, eps = 0.7, 1.6, 0.1
    # Gauss-Hermite with 8 nodes integrates these polynomials in noise and data exactly.
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    weights = torch.from_numpy(np.outer(weights, weights) / (2 * np.pi)).flatten()
    grid = torch.from_numpy(np.stack(np.meshgrid(nodes, nodes, indexing="ij"))).flatten(1)
    noise, data = grid[0, :, None], mean + std * grid[1, :, None]
    best = gaussian_velocity(mean, std)
    for time in (0.1, 0.5, 0.9):
        t = torch.tensor(time, dtype=torch.float64)
        x = (1 - t) * noise + t * data

        def loss(velocity: torch.Tensor, target: torch.Tensor = data - noise) -> float:
            return float((weights * (velocity - target).square().squeeze(-1)).sum())

        change = bend(x, t).expand_as(x)
        cost = eps**2 * float((weights * change.square().squeeze(-1)).sum())
        for sign in (-1, 1):
            found = loss(best(x, t) + sign * eps * change) - loss(best(x, t))
            assert found == pytest.approx(cost, rel=1e-9)


@pytest.mark.parametrize(
    ("std", "y", "loss"),
    [(1.0, 0.0, 0.7854), (1.0, 1.0, 1.5708), (0.5, 2.0, 6.68), (3.0, 1.0, 2.62)],
)
def test_the_loss_has_the_values_that_were_found_by_simulation(
    std: float, y: float, loss: float
) -> None:
    """Golden values of reference.md, 2.1, to the digits given there."""
    found = gaussian_alignment_loss(float64(y), 0.0, std).item()
    assert found == pytest.approx(loss, abs=0.006 if loss > 2 else 5e-5)


@EXACT
@given(mean=MEANS, std=STDS)
def test_the_loss_is_least_at_the_mean_and_pi_s_over_2_on_average(mean: float, std: float) -> None:
    """The mode costs (pi / 4) s, the average latent of the target twice that: flow matching has a floor."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    latents = mean + std * torch.from_numpy(nodes).unsqueeze(-1)
    average = torch.from_numpy(weights) @ gaussian_alignment_loss(latents, mean, std)
    assert average.item() / math.sqrt(2 * math.pi) == pytest.approx(math.pi / 2 * std)
    at_mean = gaussian_alignment_loss(float64(mean), mean, std).item()
    assert at_mean == pytest.approx(math.pi / 4 * std)
    assert (gaussian_alignment_loss(latents, mean, std) > at_mean).all()


def test_vectors_of_parameters_act_on_each_dim_alone() -> None:
    """A diagonal Gaussian is a product: its velocity is that of each dim, its loss their mean."""
    mean, std = float64(0.5, -1.0, 2.0), float64(0.3, 1.0, 2.5)
    x = rng.normal((6, 3), mean, rng.generator(0, "x"))
    t = rng.uniform((6,), mean, rng.generator(0, "t"))
    together = gaussian_velocity(mean, std)(x, t)
    losses = gaussian_alignment_loss(x, mean, std)
    for i in range(3):
        alone = gaussian_velocity(mean[i].item(), std[i].item())(x[:, i : i + 1], t)
        torch.testing.assert_close(together[:, i : i + 1], alone)
    each = [
        gaussian_alignment_loss(x[:, i : i + 1], mean[i].item(), std[i].item()) for i in range(3)
    ]
    torch.testing.assert_close(losses, torch.stack(each).mean(0))


def test_times_broadcast_over_vectors() -> None:
    """X [g, m, d] with t [g, 1] is x with t expanded."""
    x = rng.normal((4, 5, 2), float64(), rng.generator(0, "x"))
    t = rng.uniform((4, 1), float64(), rng.generator(0, "t"))
    velocity = gaussian_velocity(0.3, 2.0)
    assert torch.equal(velocity(x, t), velocity(x, t.expand(4, 5)))


def five_modes() -> GaussianMixture:
    """The paper's first toy target: five modes of std 0.3 on a circle of radius 3, over its own std."""
    angles = torch.arange(5, dtype=torch.float64) * 2 * math.pi / 5
    means = 3 * torch.stack([angles.cos(), angles.sin()], dim=-1)
    scale = math.sqrt(9 / 2 + 0.3**2)
    return GaussianMixture(means / scale, 0.3 / scale, torch.full((5,), 0.2, dtype=torch.float64))


def test_a_mixture_of_one_is_a_gaussian() -> None:
    """Velocity and log-density reduce to those of the component."""
    draw = rng.generator(0)
    x = torch.randn(7, 3, 2, generator=draw, dtype=torch.float64)
    t = torch.rand(7, 1, generator=draw, dtype=torch.float64)
    mean = float64(0.5, -1.0)
    one = GaussianMixture(mean[None], 0.7, float64(1.0))
    assert torch.allclose(one.velocity(x, t), gaussian_velocity(mean, 0.7)(x, t))
    exact = torch.distributions.Normal(mean, 0.7).log_prob(x).sum(-1)
    assert torch.allclose(one.log_density(x), exact)


def test_the_score_at_the_data_is_the_gradient_of_the_log_density() -> None:
    """By autograd, at points on and off the modes."""
    mixture = five_modes()
    x = 2 * torch.randn(50, 2, generator=rng.generator(1), dtype=torch.float64)
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(mixture.log_density(x).sum(), x)
    found = mixture.score(x.detach(), torch.ones(1, dtype=torch.float64))
    assert torch.allclose(found, gradient)


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_velocity_and_score_of_a_mixture_say_the_same(t: float) -> None:
    """S = (t v - x) / (1 - t) on the straight path."""
    mixture = five_modes()
    x = torch.randn(50, 2, generator=rng.generator(2), dtype=torch.float64)
    time = float64(t)
    from_velocity = (t * mixture.velocity(x, time) - x) / (1 - t)
    assert torch.allclose(mixture.score(x, time), from_velocity)
