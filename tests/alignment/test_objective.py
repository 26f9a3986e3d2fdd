"""No pull at all, and the pull to N(0, I)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowprior.alignment.objective import GaussianKL, Unaligned

from .latents import DIM, IMAGES, PROPERTY, TOKENS, draw, normal, plain, posterior


def test_no_alignment_is_zero_and_draws_nothing() -> None:
    """A scalar in the latents' dtype; the stream of the draws is where it was."""
    latents = normal(IMAGES, TOKENS, DIM, dtype=torch.float64)
    randomness = draw()
    loss = Unaligned()(plain(latents), randomness)
    assert loss.shape == ()
    assert loss.item() == 0
    assert loss.dtype == torch.float64
    assert torch.equal(
        torch.rand(3, generator=randomness.generator), torch.rand(3, generator=draw().generator)
    )


@PROPERTY
@given(
    images=st.integers(1, 5),
    tokens=st.integers(1, 4),
    dim=st.integers(1, 4),
    scale=st.floats(0.1, 5),
)
def test_the_kl_of_a_posterior_is_that_of_torch(
    images: int, tokens: int, dim: int, scale: float
) -> None:
    """KL(N(mean, variance) || N(0, 1)), mean over images, tokens and dims; the sampled latents do not matter."""
    mean = scale * normal(images, tokens, dim, tag="mean", dtype=torch.float64)
    log_variance = normal(images, tokens, dim, tag="log_variance", dtype=torch.float64)
    exact = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, log_variance.div(2).exp()),
        torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean)),
    ).mean()
    found = GaussianKL()(posterior(mean * torch.nan, mean, log_variance), draw())
    # The same numbers in another order; terms cancel to no less than their rounding.
    assert found.item() == pytest.approx(exact.item(), rel=1e-12, abs=1e-14)


def test_the_kl_of_a_standard_posterior_is_zero() -> None:
    """And nothing pulls there."""
    mean = torch.zeros(IMAGES, TOKENS, DIM, requires_grad=True)
    log_variance = torch.zeros(IMAGES, TOKENS, DIM, requires_grad=True)
    loss = GaussianKL()(posterior(mean, mean, log_variance), draw())
    assert loss.item() == 0
    gradients = torch.autograd.grad(loss, [mean, log_variance])
    assert not any(gradient.any() for gradient in gradients)


@PROPERTY
@given(stds=st.lists(st.floats(0.1, 10), min_size=1, max_size=5), shift=st.floats(-3, 3))
def test_the_kl_of_plain_latents_is_that_of_the_gaussian_with_their_moments(
    stds: list[float], shift: float
) -> None:
    """(m^2 + s^2 - 1 - log s^2) / 2, mean over dims: for latents m +- s, whose moments are exactly m and s."""
    std = torch.tensor(stds)
    vectors = torch.stack([shift + std, shift - std, shift - std, shift + std])
    exact = 0.5 * (shift**2 + std.square() - 1 - std.square().log()).mean().item()
    found = GaussianKL()(plain(vectors.view(2, 2, -1)), draw())
    # Float32: numbers up to 13 are squared and their mean is removed.
    assert found.item() == pytest.approx(exact, rel=1e-4, abs=1e-4)


def test_the_kl_of_a_standardised_batch_is_zero() -> None:
    """Whatever its shape beyond the first two moments; an affine map of it costs."""
    latents = normal(IMAGES, TOKENS, DIM).exp()
    vectors = latents.view(-1, DIM)
    standard = (latents - vectors.mean(0)) / vectors.std(0, correction=0)
    kl = GaussianKL()
    # Float32: deviations of 1e-7 in the moments enter the KL squared.
    assert kl(plain(standard), draw()).item() == pytest.approx(0, abs=1e-6)
    assert kl(plain(standard + 1), draw()).item() == pytest.approx(0.5, rel=1e-4)
    assert kl(plain(2 * standard), draw()).item() > 0.5


def test_the_kl_of_plain_latents_that_do_not_vary_is_large_and_finite() -> None:
    """A collapsed channel has the variance 1e-12; the gradient stays finite as well."""
    latents = torch.zeros(IMAGES, TOKENS, DIM, requires_grad=True)
    loss = GaussianKL()(plain(latents), draw())
    assert loss.item() == pytest.approx(0.5 * (12 * 2.302585 - 1), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, latents)
    assert gradient.isfinite().all()


def test_the_kl_of_bf16_latents_is_float32() -> None:
    """The moments of a batch are sums of many numbers."""
    latents = normal(IMAGES, TOKENS, DIM).bfloat16()
    loss = GaussianKL()(plain(latents), draw())
    assert loss.dtype == torch.float32
    assert loss.item() == GaussianKL()(plain(latents.float()), draw()).item()
