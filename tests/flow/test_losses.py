"""The flow matching and alignment losses against closed forms, without a network."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowprior.core import rng
from flowprior.flow import losses
from flowprior.flow.losses import alignment_loss, flow_matching_loss, grouped_loss
from flowprior.flow.path import interpolate, stratified_times
from flowprior.flow.velocity import VelocityMLP
from flowprior.toy.closed_forms import gaussian_alignment_loss, gaussian_velocity

LIKE = torch.zeros(1, dtype=torch.float64)
PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)


def normal(*shape: int, tag: str = "x") -> Tensor:
    """Fixed standard normal numbers, float64."""
    return rng.normal(shape, LIKE, rng.generator(0, tag))


def uniform(*shape: int) -> Tensor:
    """Fixed times, float64."""
    return rng.uniform(shape, LIKE, rng.generator(0, "t"))


def bent(x: Tensor, t: Tensor) -> Tensor:
    """A velocity without any special property: it mixes dims and bends in x and t."""
    mixed = torch.sin(x + 0.5 * x.roll(1, -1)) + 0.3 * x * x.flip(-1)
    return mixed * (1 + t.unsqueeze(-1)) - t.unsqueeze(-1)


def exact_alignment_loss(velocity, latent: Tensor) -> float:
    """The expectation over noise and t for a velocity that is affine in x, by quadrature.

    The loss is then quadratic in the noise, so the two nodes +-1 have its expectation exactly, dim by dim; in
    t it is a smooth rational function, for which 200 Gauss-Legendre nodes reach rounding.
    """
    nodes, weights = np.polynomial.legendre.leggauss(200)
    t = torch.from_numpy((nodes + 1) / 2).repeat(2)
    noise = torch.ones(200, len(latent), dtype=torch.float64)
    losses = alignment_loss(velocity, latent.expand(400, -1), torch.cat([noise, -noise]), t)
    return float(losses.view(2, 200).mean(0) @ torch.from_numpy(weights / 2))


# --- the house test ---------------------------------------------------------------------------------


@PROPERTY
@given(
    std=st.floats(0.3, 3.0), shift=st.floats(-2, 2), mean=st.floats(-2, 2), dim=st.integers(1, 8)
)
def test_alignment_loss_is_affine_in_nll_under_a_gaussian_prior(
    std: float, shift: float, mean: float, dim: int
) -> None:
    """D L(y) = (pi s / 2) NLL(y) + const, with NLL in nats: two latents differ by that much in both."""
    velocity = gaussian_velocity(mean, std)
    target = torch.distributions.Normal(*torch.tensor([mean, std], dtype=torch.float64))
    one, two = shift * normal(dim, tag="direction"), normal(dim, tag="other")
    loss = dim * (exact_alignment_loss(velocity, one) - exact_alignment_loss(velocity, two))
    nll = (target.log_prob(two) - target.log_prob(one)).sum().item()
    # Quadrature and rounding; the losses themselves reach 1e3.
    assert loss == pytest.approx(math.pi * std / 2 * nll, rel=1e-8, abs=1e-8)


@PROPERTY
@given(
    stds=st.lists(st.floats(0.3, 3.0), min_size=1, max_size=6),
    mean=st.floats(-2, 2),
    seed=st.integers(0, 100),
)
def test_alignment_loss_has_its_closed_form_under_a_gaussian_prior(
    stds: list[float], mean: float, seed: int
) -> None:
    """L(y) = (pi / 4) mean over dims of (s + (y - mean)^2 / s), for any spread of any dim."""
    std = torch.tensor(stds, dtype=torch.float64)
    latent = 2 * rng.normal((len(stds),), LIKE, rng.generator(seed))
    found = exact_alignment_loss(gaussian_velocity(mean, std), latent)
    expected = math.pi / 4 * (std + (latent - mean) ** 2 / std).mean().item()
    assert found == pytest.approx(expected, rel=1e-10)
    assert gaussian_alignment_loss(latent, mean, std).item() == pytest.approx(expected, rel=1e-14)


def test_the_flow_matching_loss_of_a_perfect_flow_has_a_floor() -> None:
    """E over N(mean, s^2) data is (pi / 2) mean(s), not zero."""
    std = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    n = 200_000
    data = 1.0 + std * normal(n, 3, tag="data")
    losses = flow_matching_loss(
        gaussian_velocity(1.0, std), data, normal(n, 3, tag="noise"), uniform(n)
    )
    standard_error = losses.std().item() / math.sqrt(n)
    assert losses.mean().item() == pytest.approx(math.pi / 2 * 3.5 / 3, abs=5 * standard_error)
    assert standard_error < 0.01


# --- one formula, one value a vector ----------------------------------------------------------------


def test_alignment_loss_is_the_flow_matching_loss() -> None:
    """One formula, read in two directions: equal bit for bit."""
    latents, noise, t = normal(6, 3, tag="data"), normal(6, 3, tag="noise"), uniform(6)
    assert torch.equal(
        alignment_loss(bent, latents, noise, t), flow_matching_loss(bent, latents, noise, t)
    )


@PROPERTY
@given(shape=st.lists(st.integers(1, 4), max_size=3), dim=st.integers(1, 5))
def test_losses_are_one_value_per_vector_the_mean_over_dims(shape: list[int], dim: int) -> None:
    """For any leading shape, none included, each vector gets the loss that it has alone."""
    data, noise = normal(*shape, dim, tag="data"), normal(*shape, dim, tag="noise")
    t = uniform(*shape)
    losses = flow_matching_loss(bent, data, noise, t)
    assert list(losses.shape) == shape
    for loss, y, n, time in zip(
        losses.flatten(), data.view(-1, dim), noise.view(-1, dim), t.flatten(), strict=True
    ):
        residual = bent((1 - time) * n + time * y, time) - (y - n)
        # One vector or many may be summed in another order.
        assert loss.item() == pytest.approx((residual**2).sum().item() / dim, rel=1e-12)


def test_times_broadcast_over_vectors() -> None:
    """X [g, m, d] with t [g, 1] is x with t expanded."""
    data, noise, t = normal(4, 5, 3, tag="data"), normal(4, 5, 3, tag="noise"), uniform(4, 1)
    shared = flow_matching_loss(bent, data, noise, t)
    assert torch.equal(shared, flow_matching_loss(bent, data, noise, t.expand(4, 5)))


def test_a_velocity_that_knows_the_answer_has_no_loss() -> None:
    """Zero where the velocity is data - noise."""
    data, noise = normal(6, 3, tag="data"), normal(6, 3, tag="noise")
    losses = flow_matching_loss(lambda x, t: data - noise, data, noise, uniform(6))
    assert not losses.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_of_half_precision_is_float32(dtype: torch.dtype) -> None:
    """Squares are summed in float32; 300^2 alone would overflow float16."""
    data = torch.full((2, 3), 300.0, dtype=dtype)
    noise = torch.zeros_like(data)
    losses = flow_matching_loss(lambda x, t: 0 * x, data, noise, torch.full((2,), 0.5, dtype=dtype))
    assert losses.dtype == torch.float32
    # bfloat16 has eight significant bits, and 300 = 1.171875 * 256 is exact in both.
    assert losses.tolist() == [90_000.0, 90_000.0]


# --- gradients --------------------------------------------------------------------------------------


def test_the_gradient_reaches_latents_through_the_path_and_through_the_target() -> None:
    """The whole gradient is the sum of what remains when x_t and when the target is stopped; neither vanishes."""
    noise, t = normal(6, 3, tag="noise"), uniform(6)
    latents = normal(6, 3, tag="data").requires_grad_()

    def gradient(path: Tensor, target: Tensor) -> Tensor:
        residual = bent(interpolate(noise, path, t), t) - (target - noise)
        return torch.autograd.grad(residual.square().mean(-1).sum(), latents)[0]

    (whole,) = torch.autograd.grad(alignment_loss(bent, latents, noise, t).sum(), latents)
    through_path = gradient(latents, latents.detach())
    through_target = gradient(latents.detach(), latents)
    torch.testing.assert_close(whole, through_path + through_target, rtol=1e-12, atol=1e-12)
    assert through_path.abs().min() > 1e-6
    assert through_target.abs().min() > 1e-6


def test_the_gradient_under_a_gaussian_prior_pulls_towards_the_mean() -> None:
    """dL/dy = (pi / 2 d) (y - mean) / s per dim: a spring, stiffer where the target is narrow."""
    mean, std = 0.5, torch.tensor([0.4, 1.0, 2.0], dtype=torch.float64)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    t = torch.from_numpy((nodes + 1) / 2).repeat(2)
    latent = normal(3, tag="data").requires_grad_()
    noise = torch.ones(200, 3, dtype=torch.float64)
    losses = alignment_loss(
        gaussian_velocity(mean, std), latent.expand(400, 3), torch.cat([noise, -noise]), t
    )
    loss = losses.view(2, 200).mean(0) @ torch.from_numpy(weights / 2)
    (gradient,) = torch.autograd.grad(loss, latent)
    expected = math.pi / 2 * (latent.detach() - mean) / std / 3
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)


# --- grouped, stratified times ----------------------------------------------------------------------


@PROPERTY
@given(n=st.integers(1, 40), groups=st.integers(1, 50))
def test_grouped_losses_are_those_of_each_vector_at_the_time_of_its_group(
    n: int, groups: int
) -> None:
    """For any n, divisible or not, there are n finite values, and the padding has no part in them."""
    vectors = normal(n, 3, tag="data")
    losses = grouped_loss(bent, vectors, groups, rng.generator(7))
    draws = rng.generator(7)
    noise = rng.normal_like(vectors, draws)
    size = math.ceil(n / groups)
    t = stratified_times(math.ceil(n / size), vectors, draws).repeat_interleave(size)[:n]
    assert losses.shape == (n,)
    assert losses.isfinite().all()
    torch.testing.assert_close(
        losses, flow_matching_loss(bent, vectors, noise, t), rtol=1e-12, atol=1e-12
    )


def test_padding_leaks_into_no_gradient() -> None:
    """The gradient of a vector is that of its own loss: the same whether or not the last group is padded."""
    vectors = normal(10, 3, tag="data").requires_grad_()
    losses = grouped_loss(bent, vectors, 4, rng.generator(7))
    (whole,) = torch.autograd.grad(losses.sum(), vectors)
    draws = rng.generator(7)
    noise = rng.normal_like(vectors, draws)
    t = stratified_times(4, vectors, draws).repeat_interleave(3)[:10]
    (alone,) = torch.autograd.grad(flow_matching_loss(bent, vectors, noise, t).sum(), vectors)
    torch.testing.assert_close(whole, alone, rtol=1e-12, atol=1e-12)


def test_grouped_losses_depend_on_the_generator_alone() -> None:
    """Equal generators give equal losses, others do not."""
    vectors = normal(10, 3)
    first = grouped_loss(bent, vectors, 4, rng.generator(1))
    torch.rand(3)
    assert torch.equal(first, grouped_loss(bent, vectors, 4, rng.generator(1)))
    assert not torch.equal(first, grouped_loss(bent, vectors, 4, rng.generator(2)))


def repeated(vectors: Tensor, repeats: int) -> tuple[Tensor, Tensor]:
    """Many draws of the losses of a batch: with grouped, and with independent times; [repeats, n] each."""
    velocity = gaussian_velocity(0.0, 0.5)
    draws = rng.generator(0, "repeated")
    grouped = torch.stack([grouped_loss(velocity, vectors, 8, draws) for _ in range(repeats)])
    many = vectors.expand(repeats, *vectors.shape)
    noise = rng.normal_like(many, draws)
    t = rng.uniform(tuple(many.shape[:-1]), LIKE, draws)
    return grouped, flow_matching_loss(velocity, many, noise, t)


def test_grouped_times_change_no_expectation_of_any_vector() -> None:
    """The mean over draws is that of independent times and that of the closed form, vector by vector."""
    vectors = torch.linspace(-2, 2, 27, dtype=torch.float64).view(27, 1).expand(27, 2)
    repeats = 2000
    grouped, independent = repeated(vectors, repeats)
    exact = gaussian_alignment_loss(vectors, 0.0, 0.5)
    for found in (grouped, independent):
        z = (found.mean(0) - exact) / (found.std(0) / math.sqrt(repeats))
        # 27 correlated comparisons with a fixed generator: a standard normal exceeds 4.5 once in 150 000.
        assert z.abs().max() < 4.5


def test_grouped_times_lower_the_variance_of_the_batch_mean() -> None:
    """With the same number of vectors and the same velocity, at most two thirds of it here."""
    grouped, independent = repeated(torch.full((32, 2), 2.0, dtype=torch.float64), 2000)
    ratio = grouped.mean(1).var() / independent.mean(1).var()
    # Found 0.42; the ratio of two variances of 2000 draws has a relative standard error of 4.5%.
    assert ratio < 2 / 3


def test_a_loss_without_gradient_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many vectors fit at once; the draws are made before."""
    velocity = VelocityMLP(3, 16, 2)
    torch.nn.init.normal_(velocity.output.weight)
    vectors = torch.randn(1000, 3, generator=rng.generator(0, "vectors"))
    whole = grouped_loss(velocity, vectors, 8, rng.generator(1))
    seen: list[int] = []
    velocity.register_forward_pre_hook(lambda _, args: seen.append(args[0][..., 0].numel()))
    monkeypatch.setattr(losses, "AT_ONCE", 100)
    with torch.no_grad():
        parts = grouped_loss(velocity, vectors, 8, rng.generator(1))
    torch.testing.assert_close(parts, whole)
    assert max(seen) <= 100
    seen.clear()
    grouped_loss(velocity, vectors, 8, rng.generator(1))
    assert len(seen) == 1
