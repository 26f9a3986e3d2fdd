"""Where each objective takes latents, against the closed form: a Gaussian prior that is known exactly."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowprior import FlowPrior
from flowprior.core import rng
from flowprior.prior.projection import Projection

CLOUDS = 10
"""Where latents start: as many places and widths."""


class GaussianFlow(nn.Module):
    """The optimal velocity for N(mean, factor factor^T); a flow of the latents can learn both."""

    def __init__(self, mean: Tensor, factor: Tensor) -> None:
        super().__init__()
        self.dim = len(mean)
        self.mean = nn.Parameter(mean)
        self.factor = nn.Parameter(factor)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        variances, axes = torch.linalg.eigh(self.factor @ self.factor.T)
        t = t.unsqueeze(-1)
        slope = (t * variances - (1 - t)) / ((1 - t) ** 2 + t**2 * variances)
        return self.mean + ((x - t * self.mean) @ axes * slope) @ axes.T


def gaussian_prior(dim: int) -> tuple[FlowPrior, Tensor, Tensor]:
    """A prior of a Gaussian with correlated dims, its mean and its covariance."""
    draw = rng.generator(dim, "target")
    mean = torch.randn(dim, generator=draw)
    factor = 0.7 * torch.eye(dim) + 0.3 * torch.randn(dim, dim, generator=draw) / dim**0.5
    kept = mean + torch.randn(20_000, dim, generator=draw) @ factor.T
    identity = Projection(torch.eye(dim), 1.0, "identity", 0)
    prior = FlowPrior(GaussianFlow(mean, factor), identity, targets=kept)
    return prior, mean, factor @ factor.T


def end(prior: FlowPrior, name: str, cloud: int, steps: int, lr: float, **settings: Any) -> Tensor:
    """Free latents [256, d] of one cloud, pulled by nothing else."""
    pull = prior.objective(name, seed=cloud, **settings)
    draw = rng.generator(cloud, "cloud")
    width = 0.3 + 1.5 * torch.rand(1, generator=draw)
    place = 2 * torch.randn(prior.dim, generator=draw)
    latents = torch.randn(256, prior.dim, generator=draw) * width + place
    optimizer = torch.optim.Adam([latents.requires_grad_()], lr)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        pull(latents).backward()
        optimizer.step()
        rates.step()
        pull.follow(latents)
    return latents.detach()


def check(latents: Tensor, mean: Tensor, covariance: Tensor, tolerance: float) -> None:
    """Whether latents have these moments, entry by entry."""
    torch.testing.assert_close(latents.mean(0), mean, rtol=0, atol=tolerance)
    torch.testing.assert_close(latents.T.cov(correction=0), covariance, rtol=0, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("cloud", range(CLOUDS))
@pytest.mark.parametrize("dim", [2, 32])
@pytest.mark.parametrize(
    ("name", "steps", "lr", "settings"),
    [
        ("moments", 1500, 0.1, {}),
        ("sliced_w2", 1200, 0.1, {}),
        ("dmd", 500, 0.05, {"fake_lr": 0.02}),
    ],
)
def test_distributions_are_matched_at_the_targets_mean_and_covariance(
    name: str, steps: int, lr: float, settings: dict[str, Any], dim: int, cloud: int
) -> None:
    prior, mean, covariance = gaussian_prior(dim)
    # The noise of the last steps, and for moments that of the 65 536 targets that they are taken of.
    check(end(prior, name, cloud, steps, lr, **settings), mean, covariance, 0.08)


@pytest.mark.slow
@pytest.mark.parametrize("cloud", range(CLOUDS))
@pytest.mark.parametrize("dim", [2, 32])
def test_mmds_fixed_point_is_the_targets_mean_and_covariance(dim: int, cloud: int) -> None:
    """Of latents that an encoder moves together; single points far away would hardly feel the kernels."""
    prior, mean, covariance = gaussian_prior(dim)
    pull = prior.objective("mmd", seed=cloud)
    draw = rng.generator(cloud, "cloud")
    encoder = nn.Linear(dim, dim)
    with torch.no_grad():
        encoder.weight.copy_((0.3 + 1.5 * torch.rand(1, generator=draw)) * torch.eye(dim))
        encoder.bias.copy_(2 * torch.randn(dim, generator=draw))
    optimizer = torch.optim.Adam(encoder.parameters(), 0.05)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)
    for _ in range(500):
        optimizer.zero_grad()
        pull(encoder(torch.randn(192, dim, generator=draw))).backward()
        optimizer.step()
        rates.step()
    latents = encoder(torch.randn(20_000, dim, generator=draw)).detach()
    check(latents, mean, covariance, 0.12)  # the noise of 192 latents a step


@pytest.mark.parametrize("cloud", range(CLOUDS))
@pytest.mark.parametrize("dim", [2, 32])
def test_kls_fixed_point_has_zero_mean_and_unit_variance_in_each_dim(dim: int, cloud: int) -> None:
    latents = end(gaussian_prior(dim)[0], "kl", cloud, 300, 0.1)
    torch.testing.assert_close(latents.mean(0), torch.zeros(dim), rtol=0, atol=0.02)
    torch.testing.assert_close(latents.var(0), torch.ones(dim), rtol=0.02, atol=0)


@pytest.mark.parametrize("cloud", range(CLOUDS))
@pytest.mark.parametrize("dim", [2, 32])
def test_flow_priors_fixed_point_is_the_mode(dim: int, cloud: int) -> None:
    """All of the latents end there: the alignment loss keeps no spread."""
    prior, mean, _ = gaussian_prior(dim)
    latents = end(prior, "flow_prior", cloud, 600, 0.1, num_draws=16)
    torch.testing.assert_close(latents, mean.expand_as(latents), rtol=0, atol=0.1)
