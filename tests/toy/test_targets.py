"""The six targets in the plane, against their definitions."""

import inspect
import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from flowprior.core import rng
from flowprior.toy.names import TARGETS
from flowprior.toy.targets import CURVES, Target2D, build_target

MANY = 200_000


def samples(target: Target2D, n: int = MANY, seed: int = 0) -> Tensor:
    """Divided samples of a target."""
    return target.sample(n, rng.generator(seed, target.name))


@pytest.mark.parametrize("name", TARGETS)
def test_divided_samples_have_unit_variance_over_both_coordinates(name: str) -> None:
    """The division is by a number found without sampling; 200 000 samples agree with it."""
    points = samples(build_target(name)).double()
    assert points.var(correction=0).item() == pytest.approx(1, abs=0.01)


def test_the_stds_of_the_mixtures_are_the_known_ones() -> None:
    """Variance of the means plus that of a component: 9/2 + 0.09, and 5/4 + 0.01."""
    assert build_target("mixture").std == pytest.approx(math.sqrt(4.59), rel=1e-6)
    assert build_target("grid").std == pytest.approx(math.sqrt(1.26), rel=1e-6)


@pytest.mark.parametrize("name", TARGETS)
def test_equal_generators_give_equal_samples(name: str) -> None:
    target = build_target(name)
    assert torch.equal(samples(target, 50), samples(target, 50))
    assert not torch.equal(samples(target, 50), samples(target, 50, seed=1))


@pytest.mark.parametrize(("name", "std"), [("mixture", 0.3), ("grid", 0.1)])
def test_the_exact_density_is_that_of_the_raw_mixture_with_its_jacobian(
    name: str, std: float
) -> None:
    """By scipy, in the coordinates in which the target is defined; log p(y) = log p(y s) + 2 log s."""
    if name == "mixture":
        angles = 2 * np.pi * np.arange(5) / 5
        means = 3 * np.stack([np.cos(angles), np.sin(angles)], -1)
    else:
        means = np.array([(i, j) for i in range(4) for j in range(4)]) - 1.5
    target = build_target(name)
    points = samples(target, 100) + 0.1
    raw = points.double().numpy() * target.std
    density = np.mean([multivariate_normal(mean, std**2).pdf(raw) for mean in means], 0)
    assert target.density is not None
    found = target.density.log_density(points).numpy()
    np.testing.assert_allclose(found, np.log(density) + 2 * math.log(target.std), atol=2e-3)


@pytest.mark.parametrize("name", ["mixture", "grid"])
def test_every_mode_gets_its_share(name: str) -> None:
    """Of 200 000 samples, within five standard errors."""
    target = build_target(name)
    assert target.density is not None
    k = len(target.density.means)
    modes = torch.cdist(samples(target), target.density.means).argmin(1)
    shares = torch.bincount(modes, minlength=k) / MANY
    assert (shares - 1 / k).abs().max() < 5 * math.sqrt(1 / k / MANY)


def test_curves_lie_where_they_are_defined() -> None:
    """Within six standard deviations of the noise, 0.1, in raw coordinates; and they fill what they should."""
    raw = {name: samples(build_target(name)) * build_target(name).std for name in CURVES}
    radius = raw["rings"].norm(dim=-1)
    nearest = (radius[:, None] - torch.tensor([4, 8, 12]) / 3).abs().min(1)
    assert nearest.values.max() < 0.6
    assert torch.bincount(nearest.indices) / MANY == pytest.approx([1 / 3] * 3, abs=0.01)
    for name, inner, slope in (
        ("spiral", 0.5, 1 / (2 * math.pi)),
        ("swiss_roll", 0.0, 1 / math.pi),
    ):
        x, y = raw[name].unbind(-1)
        turns = torch.arange(-1, 5)[:, None]
        angle = torch.atan2(y, x) + 2 * math.pi * turns
        end = 3 * math.pi if name == "spiral" else 6 * math.pi
        curve = inner + slope * angle.clamp(0, end)
        off = torch.hypot(
            curve * angle.clamp(0, end).cos() - x, curve * angle.clamp(0, end).sin() - y
        )
        assert off.min(0).values.max() < 0.6
    upper = raw["moons"] / 2
    lower = (raw["moons"] - torch.tensor([2, -0.5])) / 2
    off = torch.minimum((upper.norm(dim=-1) - 1).abs(), (lower.norm(dim=-1) - 1).abs())
    assert off.max() < 0.3
    assert (upper[:, 1] > -0.3).logical_or(lower[:, 1] < 0.3).all()


def test_an_unknown_target_is_refused_with_the_nearest_name() -> None:
    """Unwrapped, since the tests' type checker would refuse it first."""
    with pytest.raises(ValueError, match=r"unknown target 'moon'.*did you mean 'moons'"):
        inspect.unwrap(build_target)("moon")


def test_only_a_mixture_has_a_density_in_closed_form() -> None:
    assert len(build_target("grid").exact_density().means) == 16
    with pytest.raises(ValueError, match=r"spiral has no density .*; use one of mixture, grid"):
        build_target("spiral").exact_density()
