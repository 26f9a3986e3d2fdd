"""Objectives that ask a velocity: closed forms, and who learns."""

import pytest
import torch

from flowprior.alignment.flows import (
    DistributionMatching,
    EvidenceBound,
    ScoreDistillation,
    WeightedAlignment,
)
from flowprior.alignment.flows import FlowAlignment as Alignment
from flowprior.toy.closed_forms import gaussian_alignment_loss, gaussian_velocity

from .latents import (
    DIM,
    IMAGES,
    MEAN,
    STD,
    TOKENS,
    ExactVelocity,
    draw,
    exact_prior,
    flow_alignment,
    learned_prior,
    normal,
    plain,
)


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_alignment_with_an_exact_gaussian_flow_is_the_closed_form(shift: float) -> None:
    """(pi / 4) mean of (s + (y - mean)^2 / s) over dims and latents, within Monte-Carlo error."""
    latents = shift + normal(40, TOKENS, DIM)
    exact = gaussian_alignment_loss(latents, MEAN, STD).mean().item()
    objective = flow_alignment(exact_prior(), num_draws=64)
    losses = torch.stack([objective(plain(latents), draw(40, tag=f"draw {i}")) for i in range(20)])
    standard_error = losses.std().item() / 20**0.5
    assert losses.mean().item() == pytest.approx(exact, abs=4 * standard_error)
    # The check is worth something: the error is small beside the loss.
    assert standard_error < 0.01 * exact


def test_alignment_pulls_latents_towards_the_mean_of_a_gaussian() -> None:
    """By (pi / 2 d) (y - mean) / s per latent in expectation."""
    latents = (MEAN + torch.tensor([2.0, -2.0, 2.0])).expand(20, TOKENS, DIM).clone()
    latents.requires_grad_()
    loss = flow_alignment(exact_prior(), num_draws=256)(plain(latents), draw(20))
    (gradient,) = torch.autograd.grad(loss, latents)
    pull = gradient.sum((0, 1))
    expected = torch.pi / 2 * torch.tensor([2.0, -2.0, 2.0]) / STD / DIM
    # 25 600 draws: a standard error below one percent.
    torch.testing.assert_close(pull, expected, rtol=0.04, atol=0)


def test_the_prior_is_frozen_and_latents_learn() -> None:
    """No parameter of the prior takes a gradient; every latent gets one."""
    prior = learned_prior()
    latents = normal(IMAGES, TOKENS, DIM).requires_grad_()
    flow_alignment(prior, num_draws=2)(plain(latents), draw()).backward()
    assert list(prior.velocity.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in prior.velocity.parameters())
    assert latents.grad is not None
    assert latents.grad.abs().amin() > 0


def test_the_tokens_of_an_image_share_the_time_of_a_draw() -> None:
    """Times [k, b, 1], stratified over all k b: one in each of so many equal parts of (0, 1)."""
    prior = exact_prior()
    flow_alignment(prior, num_draws=4)(plain(normal(IMAGES, TOKENS, DIM)), draw())
    (t,) = prior.velocity.times
    assert t.shape == (4, IMAGES, 1)
    strata = (t.flatten() * 4 * IMAGES).floor().long()
    assert strata.sort().values.tolist() == list(range(4 * IMAGES))


def test_bf16_latents_are_aligned_in_float32() -> None:
    """Noise of bfloat16 would be too coarse."""
    latents = normal(IMAGES, TOKENS, DIM).bfloat16()
    objective = flow_alignment(learned_prior(), num_draws=2)
    loss = objective(plain(latents), draw())
    assert loss.dtype == torch.float32
    assert loss.item() == objective(plain(latents.float()), draw()).item()


def test_draws_come_from_the_generator_alone() -> None:
    """Equal generators give equal losses to the bit, others do not."""
    latents = normal(IMAGES, TOKENS, DIM)
    objective = flow_alignment(learned_prior(), num_draws=2)
    first = objective(plain(latents), draw())
    torch.rand(3)
    assert objective(plain(latents), draw()) == first
    assert objective(plain(latents), draw(tag="other")) != first


def test_latents_of_another_dim_are_an_error_that_says_what_to_run() -> None:
    """Both numbers, and the stage that has to run again."""
    objective = flow_alignment(exact_prior(), num_draws=2)
    with pytest.raises(
        ValueError, match=r"have 4 channels, .* models 3; run `dvc repro train_flow`"
    ):
        objective(plain(normal(IMAGES, TOKENS, 4)), draw())


def test_sds_has_the_value_of_the_alignment_loss_and_no_gradient_through_the_network() -> None:
    """For N(0, s^2) its gradient is 2 y times the integral of (1 - t) / ((1 - t)^2 + t^2 s^2), here s = 1."""
    velocity, latents = gaussian_velocity(0.0, 1.0), normal(IMAGES, TOKENS, DIM).requires_grad_()
    mine = ScoreDistillation(velocity, DIM, 512)(plain(latents), draw())
    assert mine.item() == pytest.approx(
        Alignment(velocity, DIM, 512)(plain(latents), draw()).item(), rel=1e-5
    )
    mine.backward()
    t = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    slope = 2 * float(((1 - t) / ((1 - t) ** 2 + t**2)).mean()) / latents.numel()
    fitted = float((latents.grad * latents).sum() / latents.detach().square().sum())
    assert fitted == pytest.approx(slope, rel=0.05)


def test_the_weighted_loss_of_a_perfect_flow_differs_between_latents_as_their_nll_does() -> None:
    """In nats per dim, of the density blurred by the noise left at t_max."""
    t_max = 0.95
    objective = WeightedAlignment(gaussian_velocity(0.0, 1.0), DIM, 2048, t_max)
    near, far = (
        objective(plain(torch.full((4, 2, DIM), value)), draw(4)).item() for value in (0.0, 1.5)
    )
    blurred = 1 + ((1 - t_max) / t_max) ** 2
    assert far - near == pytest.approx(1.5**2 / 2 / blurred, rel=0.05)


def test_the_elbo_of_a_gaussian_is_its_alignment_loss_plus_the_log_of_its_spread() -> None:
    """Tr dv/dx is the slope of the linear field, whose integral over time is log s, for every latent."""
    latents = normal(IMAGES, TOKENS, DIM).requires_grad_()
    found = EvidenceBound(gaussian_velocity(0.0, 0.5), DIM, 512)(plain(latents), draw())
    exact = gaussian_alignment_loss(latents, 0.0, 0.5).mean()
    assert found.item() == pytest.approx(
        float(exact.detach()) + torch.tensor(0.5).log().item(), rel=0.05
    )
    found.backward()
    assert latents.grad.isfinite().all()


@pytest.mark.parametrize(("fake_std", "sign"), [(2.0, 1.0), (0.5, -1.0)])
def test_dmd_shrinks_latents_that_spread_too_far_and_spreads_those_that_do_not(
    fake_std: float, sign: float
) -> None:
    objective = DistributionMatching(
        ExactVelocity(torch.zeros(DIM), torch.ones(DIM)), DIM, 64, 0.95
    )
    latents = normal(IMAGES, TOKENS, DIM).requires_grad_()
    assert objective(plain(latents), draw()).item() == 0
    objective.fake = ExactVelocity(torch.zeros(DIM), torch.full((DIM,), fake_std))
    objective(plain(latents), draw()).backward()
    assert float((latents.grad * latents).sum()) * sign > 0


def test_dmds_fake_flow_learns_from_the_latents_without_pulling_them() -> None:
    objective = DistributionMatching(learned_prior().velocity, DIM, 2, 0.95)
    latents = normal(IMAGES, TOKENS, DIM).requires_grad_()
    objective.fake_loss(objective.fake, plain(latents), draw()).backward()
    assert latents.grad is None
    assert all(p.grad is not None for p in objective.fake.parameters())
    assert not any(p.requires_grad for p in objective.velocity.parameters())


@pytest.mark.parametrize("t_max", [0.0, 1.0, -1.0, 1.5])
def test_a_t_max_outside_the_unit_interval_is_refused_at_once(t_max: float) -> None:
    with pytest.raises(ValueError, match="t_max"):
        WeightedAlignment(gaussian_velocity(0.0, 1.0), DIM, 2, t_max)
    with pytest.raises(ValueError, match="t_max"):
        DistributionMatching(learned_prior().velocity, DIM, 2, t_max)
