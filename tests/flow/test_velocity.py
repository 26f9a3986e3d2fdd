"""The velocity network: its size, its start at zero, and how it broadcasts time."""

import pytest
import torch
from torch import Tensor, nn

from flowprior.core import rng
from flowprior.flow.likelihood import log_density
from flowprior.flow.losses import flow_matching_loss
from flowprior.flow.ode import integrate
from flowprior.flow.path import interpolate
from flowprior.flow.velocity import PreconditionedVelocity, TimeEmbedding, VelocityMLP

LIKE = torch.zeros(1, dtype=torch.float64)


def normal(*shape: int, tag: str = "x") -> Tensor:
    """Fixed standard normal numbers, float64."""
    return rng.normal(shape, LIKE, rng.generator(0, tag))


def uniform(*shape: int) -> Tensor:
    """Fixed times, float64."""
    return rng.uniform(shape, LIKE, rng.generator(0, "t"))


def fresh(condition_dim: int | None = None) -> VelocityMLP:
    """A small network as it is initialised."""
    with rng.scoped(0, "fresh"):
        return VelocityMLP(3, width=16, depth=2, condition_dim=condition_dim).double()


def trained(condition_dim: int | None = None) -> VelocityMLP:
    """A small network in which every path carries signal: nothing is zero any more."""
    net = fresh(condition_dim)
    with rng.scoped(0, "trained"):
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.4)
    return net


def linears_of(module: nn.Module) -> list[nn.Linear]:
    """Its linear layers, in order."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ({"dim": 32, "width": 1024, "depth": 6}, 34_978_848),
        ({"dim": 32, "width": 1024, "depth": 6, "condition_dim": 768}, 35_766_304),
        ({"dim": 2, "width": 512, "depth": 4}, 6_179_330),
    ],
    ids=["flow prior", "MAR head", "toy"],
)
def test_the_networks_of_the_paper_have_their_number_of_parameters(
    shape: dict[str, int], count: int
) -> None:
    """As in the authors' code, to the last bias; reference.md 1.1."""
    with torch.device("meta"):
        net = VelocityMLP(**shape)
    assert sum(p.numel() for p in net.parameters()) == count


def test_the_output_is_zero_at_initialisation() -> None:
    """Exactly, at any point, time and condition."""
    assert not fresh()(normal(5, 3), uniform(5)).any()
    assert not fresh(4)(normal(5, 3), uniform(5), normal(5, 4)).any()


def test_every_block_is_the_identity_at_initialisation() -> None:
    """The gates are shut, so what enters a block leaves it bit for bit."""
    net, h = fresh(), normal(5, 16)
    for block in net.blocks:
        assert torch.equal(block(h, normal(5, 16, tag="context")), h)


def test_the_first_loss_is_one_plus_the_variance_of_the_data() -> None:
    """Zero output: E (data - noise)^2 = var(data) + 1 per dim, for centred data."""
    n, std = 100_000, 1.5
    losses = flow_matching_loss(
        fresh(), std * normal(n, 3, tag="data"), normal(n, 3, tag="noise"), uniform(1)
    )
    # Per value the squared residual has the standard deviation sqrt(2) (1 + std^2); five standard errors of n * 3.
    tolerance = 5 * 2**0.5 * (1 + std**2) / (3 * n) ** 0.5
    assert losses.mean().item() == pytest.approx(1 + std**2, abs=tolerance)


def test_learning_starts_although_the_output_is_zero() -> None:
    """The first gradient reaches the output layer, and after one step every parameter."""
    net = fresh()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss = flow_matching_loss(net, normal(8, 3, tag="data"), normal(8, 3), uniform(8)).mean()
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("shape", [(4, 1), (1, 5), (1, 1), (5,), (1,), ()])
def test_vectors_that_share_a_time_get_what_they_get_alone(shape: tuple[int, ...]) -> None:
    """X [g, m, d] with t [g, 1], or any other shape that broadcasts, is x with t expanded."""
    net, x, t = trained(), normal(4, 5, 3), uniform(*shape)
    # Matrix products of another shape may sum in another order; the numbers are of order one to a hundred.
    torch.testing.assert_close(net(x, t), net(x, t.expand(4, 5)), rtol=1e-12, atol=1e-12)


def test_the_modulation_is_computed_once_for_a_shared_time() -> None:
    """Its cost is that of the shape of t: the saving that grouped times are for."""
    net = trained()
    rows: list[int] = []
    for linear in (linears_of(net.time)[0], net.blocks[0].modulation, net.final_modulation):
        linear.register_forward_hook(
            lambda _, inputs, __: rows.append(inputs[0].shape[:-1].numel())
        )
    net(normal(4, 5, 3), uniform(4, 1))
    assert rows == [4, 4, 4]


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3), (2, 1, 3)])
def test_points_may_have_any_leading_shape(shape: tuple[int, ...]) -> None:
    """Each vector is treated alone: reshaping before or after is the same."""
    net, x, t = trained(), normal(*shape, 3), uniform(*shape)
    found = net(x, t)
    assert found.shape == x.shape
    flat = net(x.reshape(-1, 3), t.reshape(-1))
    torch.testing.assert_close(found.reshape(-1, 3), flat, rtol=1e-12, atol=1e-12)


def test_vectors_do_not_see_one_another() -> None:
    """Changing one leaves the others' velocities as they were."""
    net, x, t = trained(), normal(6, 3), uniform(6)
    before = net(x, t)
    x[2] += 10
    after = net(x, t)
    others = [0, 1, 3, 4, 5]
    assert torch.equal(before[others], after[others])
    assert not torch.allclose(before[2], after[2])


def test_the_condition_matters_and_broadcasts() -> None:
    """One condition for a group of vectors is that condition for each of them."""
    net, x, t = trained(4), normal(2, 5, 3), uniform(2, 1)
    condition = normal(2, 1, 4, tag="condition")
    shared = net(x, t, condition)
    torch.testing.assert_close(
        shared, net(x, t.expand(2, 5), condition.expand(2, 5, 4)), rtol=1e-12, atol=1e-12
    )
    assert not torch.allclose(shared, net(x, t, condition + 1))


def test_a_condition_that_is_missing_or_not_wanted_is_an_error() -> None:
    """Both messages say how the network was built."""
    x, t, condition = normal(5, 3), uniform(5), normal(5, 4)
    with pytest.raises(ValueError, match="built with a condition; pass one"):
        fresh(4)(x, t)
    with pytest.raises(ValueError, match="built without a condition; do not pass one"):
        fresh()(x, t, condition)


def test_time_is_embedded_by_sinusoids_cosines_first() -> None:
    """Cos then sin of t times 1 ... 1/10 000, geometrically; t is used as it is, without a factor of 1000."""
    embedding = TimeEmbedding(width=8).double()
    seen: list[Tensor] = []
    linears_of(embedding)[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    embedding(torch.tensor([0.0, 0.75], dtype=torch.float64))
    (waves,) = seen
    assert waves.shape == (2, 256)
    assert waves[0].tolist() == [1.0] * 128 + [0.0] * 128
    angles = 0.75 * 10_000 ** (-torch.arange(128, dtype=torch.float64) / 128)
    # The angles are float32 whatever the network is.
    torch.testing.assert_close(waves[1], torch.cat([angles.cos(), angles.sin()]), rtol=0, atol=1e-6)


def test_initialisation_is_that_of_the_paper() -> None:
    """Xavier in the blocks, N(0, 0.02) in the time embedding, zero biases and modulations."""
    with rng.scoped(0):
        net = VelocityMLP(32, width=256, depth=1)
    assert all(not module.bias.any() for module in net.modules() if isinstance(module, nn.Linear))
    for zero in (net.blocks[0].modulation, net.final_modulation, net.output):
        assert not zero.weight.any()
    # 65 536 weights each: the relative standard error of a standard deviation is 0.3%.
    for linear in linears_of(net.time):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
    for linear in linears_of(net.blocks[0].mlp):
        assert linear.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)


def test_half_precision_networks_take_half_precision_points() -> None:
    """A network cast to bfloat16 answers in bfloat16; time is embedded in float32 before that."""
    net = trained().bfloat16()
    out = net(normal(5, 3).bfloat16(), uniform(5).bfloat16())
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


def gaussian_facts() -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variances and axes of a Gaussian in three dims, one of them narrow."""
    axes, _ = torch.linalg.qr(rng.normal((3, 3), torch.zeros(1), rng.generator(0, "axes")))
    return torch.tensor([5.0, 0.0, -2.0]), torch.tensor([1e-4, 1.0, 4.0]), axes


def test_an_untrained_preconditioned_velocity_is_that_of_the_gaussian() -> None:
    """Its flow carries noise to the mean and the covariance, however narrow an axis is."""
    mean, variances, axes = gaussian_facts()
    velocity = PreconditionedVelocity(VelocityMLP(3, 8, 1, lifted=True), mean, variances, axes)
    noise = rng.normal((4000, 3), mean, rng.generator(0, "noise"))
    with torch.no_grad():
        end = integrate(velocity, noise, 100, slowing=True)
    expected = noise @ axes * variances.sqrt() @ axes.T + mean
    torch.testing.assert_close(end, expected, rtol=0, atol=5e-3)
    exact = torch.distributions.MultivariateNormal(mean, axes * variances @ axes.T)
    points = exact.sample((20,))
    torch.testing.assert_close(
        log_density(velocity, points), exact.log_prob(points), rtol=1e-3, atol=1e-2
    )


def test_the_weighted_loss_of_a_gaussian_is_one_at_every_time() -> None:
    """Each axis and time in units of what cannot be known."""
    mean, variances, axes = gaussian_facts()
    velocity = PreconditionedVelocity(VelocityMLP(3, 8, 1), mean, variances, axes)
    draw = rng.generator(0, "loss")
    normal = rng.normal((20_000, 3), mean, draw)
    data, noise = normal * variances.sqrt() @ axes.T + mean, rng.normal_like(normal, draw)
    for time in (0.02, 0.5, 0.98):
        t = torch.full((1,), time)
        found = velocity.training_loss(data, noise, t).mean()
        assert float(found.detach()) == pytest.approx(1, abs=0.02)


def test_weighted_and_plain_loss_are_of_one_field() -> None:
    """The weighted residual is the plain one over the spread of its axis."""
    mean, variances, axes = gaussian_facts()
    network = VelocityMLP(3, 8, 1, lifted=True)
    torch.nn.init.normal_(network.output.weight)
    velocity = PreconditionedVelocity(network, mean, variances, axes)
    draw = rng.generator(0, "both")
    data, noise = (rng.normal((50, 3), mean, draw) for _ in range(2))
    t = rng.uniform((50,), mean, draw)
    x_t = interpolate(noise, data, t)
    residual = (velocity(x_t, t) - (data - noise)) @ axes
    left = (1 - t).unsqueeze(-1)
    spread = (variances / (left.square() + variances * (1 - left).square())).sqrt()
    torch.testing.assert_close(
        velocity.training_loss(data, noise, t),
        (residual / spread).square().mean(-1),
        rtol=1e-3,
        atol=1e-3,
    )


def test_a_preconditioned_velocity_has_an_answer_beyond_the_ends() -> None:
    """Where an adaptive solver looks."""
    velocity = PreconditionedVelocity(VelocityMLP(3, 8, 1), *gaussian_facts())
    for time in (-0.1, 0.0, 1.0, 1.1):
        assert velocity(torch.zeros(2, 3), torch.full((1,), time)).isfinite().all()


def test_facts_of_another_dim_are_an_error() -> None:
    mean, variances, axes = gaussian_facts()
    with pytest.raises(ValueError, match="that of 4 channels"):
        PreconditionedVelocity(VelocityMLP(4, 8, 1), mean, variances, axes)
