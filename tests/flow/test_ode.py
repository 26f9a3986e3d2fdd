"""The solvers have their order, their cost and their direction."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowprior.core import rng
from flowprior.flow.ode import Solver, integrate
from flowprior.toy.closed_forms import gaussian_velocity

LIKE = torch.zeros(1, dtype=torch.float64)
SOLVERS: tuple[Solver, Solver] = ("euler", "heun")


def normal(*shape: int) -> Tensor:
    """Fixed standard normal numbers, float64."""
    return rng.normal(shape, LIKE, rng.generator(0, "x"))


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("std", [0.4, 2.0])
def test_halving_the_step_divides_the_error_by_two_to_the_order(
    solver: Solver, order: int, std: float
) -> None:
    """On the exact Gaussian field, where the end is known: x -> mean + s x."""
    x, mean = normal(20, 2), 0.7
    velocity = gaussian_velocity(mean, std)
    errors = [
        (integrate(velocity, x, steps, solver) - (mean + std * x)).abs().max().item()
        for steps in (64, 128, 256)
    ]
    for coarse, fine in itertools.pairwise(errors):
        # The next term of the error is smaller by a step of 1/64 and a factor of order one.
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(mean=st.floats(-3, 3), std=st.floats(0.3, 3))
def test_the_flow_of_a_gaussian_is_affine(mean: float, std: float) -> None:
    """Noise x goes to mean + s x, and the target goes back to the noise."""
    x = normal(5, 3)
    velocity = gaussian_velocity(mean, std)
    # Heun's error at 200 steps was found to be 1.4e-4 at most, for the widest target.
    there = integrate(velocity, x, 200)
    torch.testing.assert_close(there, mean + std * x, rtol=0, atol=5e-4)
    back = integrate(velocity, mean + std * x, 200, start=1.0, end=0.0)
    torch.testing.assert_close(back, x, rtol=0, atol=5e-4)


def test_each_dim_flows_alone_towards_its_own_gaussian() -> None:
    """Vectors of means and spreads act per dim."""
    mean = torch.tensor([1.0, -2.0], dtype=torch.float64)
    std = torch.tensor([0.5, 2.0], dtype=torch.float64)
    x = normal(5, 2)
    end = integrate(gaussian_velocity(mean, std), x, 200)
    torch.testing.assert_close(end, mean + std * x, rtol=0, atol=1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 7])
def test_a_constant_velocity_is_followed_exactly(solver: Solver, steps: int) -> None:
    """Both solvers, any number of steps, either direction."""
    x = normal(4, 2)
    slope = torch.tensor([3.0, -1.0], dtype=torch.float64)
    end = integrate(lambda x, t: slope.expand_as(x), x, steps, solver, start=0.25, end=0.75)
    torch.testing.assert_close(end, x + slope / 2, rtol=0, atol=1e-14)


def test_heun_integrates_a_velocity_linear_in_time_in_one_step() -> None:
    """The trapezoid is exact for 2t; Euler, which looks at the start, stays where it was."""
    x = normal(4, 2)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return (2 * t).unsqueeze(-1).expand_as(x)

    assert torch.equal(integrate(velocity, x, 1, "heun"), x + 1)
    assert torch.equal(integrate(velocity, x, 1, "euler"), x)


@pytest.mark.parametrize(("solver", "cost"), [("euler", 1), ("heun", 2)])
def test_the_number_of_evaluations_is_what_the_solver_promises(solver: Solver, cost: int) -> None:
    """One a step for Euler, two for Heun, all at times between start and end."""
    times: list[float] = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        times.append(t.item())
        return -x

    integrate(velocity, normal(3, 2), 5, solver)
    assert len(times) == 5 * cost
    assert (min(times), max(times)) == (0.0, 1.0 if solver == "heun" else pytest.approx(0.8))


@pytest.mark.parametrize("shape", [(2,), (3, 2), (4, 3, 2), (0, 2)])
def test_points_may_have_any_leading_shape(shape: tuple[int, ...]) -> None:
    """The result has the shape of the points, and times broadcast to all of it but the last axis."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        assert torch.broadcast_shapes(t.shape, x.shape[:-1]) == x.shape[:-1]
        assert t.ndim == x.ndim - 1
        assert t.dtype == x.dtype
        return gaussian_velocity(0.0, 2.0)(x, t)

    x = normal(*shape)
    end = integrate(velocity, x, 64)
    assert end.shape == x.shape
    torch.testing.assert_close(end, 2 * x, rtol=0, atol=1e-2)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_gradient_flows_through_the_solver(solver: Solver) -> None:
    """D end / d x is the spread of the Gaussian that x is carried to."""
    x = normal(5, 2).requires_grad_()
    end = integrate(gaussian_velocity(1.0, 2.0), x, 400, solver)
    (gradient,) = torch.autograd.grad(end.sum(), x)
    # Euler's error at 400 steps is of the order of 1/400.
    torch.testing.assert_close(gradient, torch.full_like(x, 2.0), rtol=0, atol=2e-2)


def test_the_points_are_not_changed_in_place() -> None:
    """The caller keeps its noise."""
    x = normal(5, 2)
    before = x.clone()
    integrate(gaussian_velocity(1.0, 2.0), x, 3)
    assert torch.equal(x, before)


@pytest.mark.parametrize("steps", [0, -1])
def test_a_number_of_steps_below_one_is_an_error(steps: int) -> None:
    """The message says what was found."""
    with pytest.raises(ValueError, match=f"num_steps must be at least 1, found {steps}"):
        integrate(gaussian_velocity(0.0, 1.0), normal(2, 2), steps)


def test_an_unknown_solver_is_an_error() -> None:
    """Refused by the function, or before it by the type checker where that is installed."""
    with pytest.raises((ValueError, TypeError)):
        integrate(gaussian_velocity(0.0, 1.0), normal(2, 2), 3, "rk4")  # type: ignore[arg-type]
