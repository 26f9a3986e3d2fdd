"""What pulls latents towards the prior: closed forms, who learns, and that ranks do not matter."""

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowprior import FlowPrior
from flowprior.alignment.flows import (
    DistributionMatching,
    EvidenceBound,
    ScoreDistillation,
    WeightedAlignment,
)
from flowprior.alignment.flows import FlowAlignment as Alignment
from flowprior.alignment.objective import GaussianKL, Objective, Unaligned
from flowprior.alignment.registry import build_objective
from flowprior.alignment.samples import MomentMatching, SlicedWasserstein, squared_mmd
from flowprior.core import rng
from flowprior.core.codes import Codes
from flowprior.core.rng import Draw
from flowprior.flow.velocity import VelocityMLP
from flowprior.prior.projection import Projection
from flowprior.toy.closed_forms import gaussian_alignment_loss, gaussian_velocity

PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)
IMAGES, TOKENS, DIM = 6, 5, 3


def normal(*shape: int, tag: str = "x", dtype: torch.dtype = torch.float32) -> Tensor:
    """Fixed standard normal numbers."""
    return torch.randn(*shape, generator=rng.generator(0, tag), dtype=dtype)


class ExactVelocity(VelocityMLP):
    """The optimal field for a Gaussian target, in the clothes of a network; it remembers the times it was asked."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__(len(mean), 4, 1)
        self.exact = gaussian_velocity(mean, std)
        self.times: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.times.append(t)
        return self.exact(x, t)


MEAN, STD = torch.tensor([1.0, 0.0, -0.5]), torch.tensor([0.5, 1.0, 1.5])


def exact_prior() -> FlowPrior:
    """A prior that knows N(MEAN, STD^2) exactly."""
    return FlowPrior(ExactVelocity(MEAN, STD), Projection(torch.eye(DIM), 1.0, "identity", seed=0))


def learned_prior() -> FlowPrior:
    """A prior whose network answers something at every point, though nothing of use."""
    with rng.scoped(0, "prior"):
        velocity = VelocityMLP(DIM, 8, 1)
        for parameter in velocity.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return FlowPrior(velocity, Projection(torch.eye(DIM), 1.0, "identity", seed=0))


def targets(n: int, generator: torch.Generator) -> Tensor:
    """Samples of what `exact_prior` knows."""
    return MEAN + STD * torch.randn(n, DIM, generator=generator)


def flow_alignment(prior: FlowPrior, num_draws: int) -> Alignment:
    """The paper's objective on a prior."""
    return Alignment(prior.velocity, prior.dim, num_draws)


def whole(batch: Tensor, dim: int) -> Tensor:
    """The share of a rank that is alone."""
    return batch


def part(batch: Tensor, dim: int, *, rank: int, ranks: int) -> Tensor:
    """The share of one of several ranks."""
    return batch.chunk(ranks, dim)[rank]


def draw(images: int = IMAGES, tag: str = "draw") -> Draw:
    """Fresh randomness for one process; the same at every call."""
    return Draw(rng.generator(0, tag), images, whole)


def plain(latents: Tensor) -> Codes:
    """Codes without a posterior."""
    return Codes(latents, latents, None)


def posterior(latents: Tensor, mean: Tensor, log_variance: Tensor) -> Codes:
    """Codes with one."""
    return Codes(latents, mean, log_variance)


# --- no objective -----------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("name", "kind"), [("none", Unaligned), ("flow_prior", Alignment), ("kl", GaussianKL)]
)
def test_every_name_builds_its_objective(name: str, kind: type) -> None:
    """All behind one face."""
    objective = build_objective(name, exact_prior(), targets, num_draws=2)
    assert type(objective) is kind
    assert isinstance(objective, Objective)
    assert objective(plain(normal(IMAGES, TOKENS, DIM)), draw()).shape == ()


# --- kl ---------------------------------------------------------------------------------------------


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


# --- the flow prior ---------------------------------------------------------------------------------


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
    assert list(prior.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in prior.parameters())
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


# --- ranks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(
    ("name", "bottleneck"),
    [
        ("none", "plain"),
        ("flow_prior", "plain"),
        ("flow_prior", "kl"),
        ("kl", "kl"),
    ],
)
def test_a_result_does_not_depend_on_how_the_batch_is_shared(
    name: str, bottleneck: str, ranks: int
) -> None:
    """Loss and gradient are the averages over the ranks, each with its share of latents and draws.

    The KL of a plain bottleneck is left out: it needs the whole batch, and `train_ae` refuses it on many ranks.
    """
    objective = build_objective(name, learned_prior(), targets, num_draws=2)

    def codes(rank: int, of: int) -> tuple[Codes, Tensor]:
        cut: Any = partial(part, dim=0, rank=rank, ranks=of)
        latents = cut(3 * normal(IMAGES, TOKENS, DIM) + 1).requires_grad_()
        if bottleneck == "plain":
            return plain(latents), latents
        log_variance = cut(normal(IMAGES, TOKENS, DIM, tag="log_variance")).requires_grad_()
        return posterior(latents, latents, log_variance), latents

    def run(rank: int, of: int) -> tuple[float, Tensor]:
        found, latents = codes(rank, of)
        share: Any = partial(part, rank=rank, ranks=of)
        loss = objective(found, Draw(rng.generator(0, "draw"), IMAGES, share))
        if not loss.requires_grad:
            return loss.item(), torch.zeros_like(latents)
        (gradient,) = torch.autograd.grad(loss, latents)
        return loss.item(), gradient

    loss, gradient = run(0, 1)
    shares = [run(rank, ranks) for rank in range(ranks)]
    # Sums of float32 in another order.
    assert sum(value for value, _ in shares) / ranks == pytest.approx(loss, rel=1e-5, abs=1e-7)
    together = torch.cat([value for _, value in shares]) / ranks
    torch.testing.assert_close(together, gradient, rtol=1e-4, atol=1e-6)


# --- the others -------------------------------------------------------------------------------------


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


def test_sliced_w2_of_a_shifted_set_is_the_squared_shift_over_the_dims() -> None:
    points = normal(200, 1, DIM)
    objective = SlicedWasserstein(lambda n, generator: points.flatten(0, 1) + 2.0, 4096)
    assert objective(plain(points), draw(200)).item() == pytest.approx(4.0, rel=0.1)


def test_mmd_of_two_heaps_is_twice_what_the_kernels_lack_of_one() -> None:
    widths = 2 * DIM * torch.tensor([0.01, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0])
    x, y = torch.zeros(5, DIM), torch.zeros(7, DIM)
    y[:, 0] = 2.0
    exact = 2 - 2 * (widths / (widths + 4)).mean()
    assert squared_mmd(x, y).item() == pytest.approx(exact.item(), rel=1e-5)
    assert squared_mmd(x, x).item() == pytest.approx(0, abs=1e-6)


def test_moments_are_zero_where_they_agree_and_see_a_shift_and_a_spread() -> None:
    x = normal(400, 1, DIM)
    flat = x.flatten(0, 1)
    objective = MomentMatching(flat.mean(0), flat.T.cov(correction=0))
    assert objective(plain(x), draw(400)).item() == pytest.approx(0, abs=1e-9)
    assert objective(plain(x + 1), draw(400)).item() == pytest.approx(1, rel=1e-4)
    assert objective(plain(2 * x), draw(400)).item() > 0.5
