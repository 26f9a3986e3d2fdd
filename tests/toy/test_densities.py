"""The kernel density, against what it estimates."""

import math

import pytest
import torch
from torch import Tensor

from flowprior.core import rng
from flowprior.toy import densities
from flowprior.toy.closed_forms import GaussianMixture
from flowprior.toy.densities import kernel_log_density
from flowprior.toy.targets import Target2D, build_target

MANY = 200_000


def samples(target: Target2D, n: int = MANY, seed: int = 0) -> Tensor:
    """Divided samples of a target."""
    return target.sample(n, rng.generator(seed, target.name))


def test_the_kernel_density_of_one_sample_is_a_gaussian() -> None:
    """-|x - y|^2 / 2 h^2 - log(2 pi h^2)."""
    points = torch.tensor([[0.0, 0.0], [0.3, -0.4]])
    found = kernel_log_density(points, torch.zeros(1, 2), 0.5)
    constant = -math.log(2 * math.pi * 0.25)
    assert found.tolist() == pytest.approx([constant, constant - 0.5])


def test_the_kernel_density_is_that_of_the_blurred_target() -> None:
    """The mean of the estimate is the target's density blurred by h, which for a mixture is a mixture."""
    target = build_target("mixture")
    assert target.density is not None
    means, std, weights = target.density.means, target.density.std, target.density.weights
    blurred = GaussianMixture(means, math.hypot(std, 0.1), weights)
    points = samples(target, 200, seed=1)
    found = kernel_log_density(points, samples(target), 0.1)
    # At the least dense of these points about a thousand samples are within h: 3% each.
    assert (found - blurred.log_density(points)).abs().max() < 0.15


def test_blocks_do_not_change_the_kernel_density(monkeypatch: pytest.MonkeyPatch) -> None:
    target = build_target("spiral")
    points, other = samples(target, 37).double(), samples(target, 500, seed=1).double()
    whole = kernel_log_density(points, other)
    monkeypatch.setattr(densities, "KERNEL_BLOCK", 1)
    torch.testing.assert_close(kernel_log_density(points, other), whole)


def test_far_points_have_no_floor() -> None:
    """Twenty away the logarithm is about -20^2 / 2 h^2, not that of some small constant."""
    far = kernel_log_density(torch.tensor([[20.0, 0.0]]), torch.zeros(3, 2), 0.1)
    assert far.item() == pytest.approx(-20_000 - math.log(2 * math.pi * 0.01))


def test_no_points_have_no_densities() -> None:
    assert kernel_log_density(torch.zeros(0, 2), torch.zeros(3, 2)).shape == (0,)


@pytest.mark.parametrize(("count", "bandwidth"), [(0, 0.1), (3, 0.0), (3, -1.0), (3, math.nan)])
def test_no_samples_or_no_bandwidth_are_refused(count: int, bandwidth: float) -> None:
    with pytest.raises(ValueError, match="needs samples and a positive bandwidth"):
        kernel_log_density(torch.zeros(2, 2), torch.zeros(count, 2), bandwidth)
