"""Decay where it belongs, a schedule with exact corners, an average that forgets its start."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flowprior.core.optim import Schedule, adamw, ema_decay, moving_average, schedule

PEAK = 3e-4


def network() -> nn.Sequential:
    """Matrices, vectors, and a layer that does not learn."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2), nn.Linear(2, 2)
        ).double()
    net[3].requires_grad_(False)
    return net


def rates(kind: Schedule, num_steps: int, warmup_steps: int, count: int) -> list[float]:
    """Learning rates of the first `count` steps, over the peak."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=PEAK)
    plan = schedule(optimizer, kind, num_steps, warmup_steps)
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"] / PEAK)
        optimizer.step()
        plan.step()
    return found


# --- weight decay -----------------------------------------------------------------------------------


def test_weight_decay_falls_on_matrices_only() -> None:
    """Biases and norms are not decayed, and what does not learn is not in the optimiser."""
    net = network()
    groups = adamw(net, PEAK, (0.9, 0.95), weight_decay=0.5).param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] == 0.5 for p in g["params"]}
    spared = {id(p) for g in groups if g["weight_decay"] == 0.0 for p in g["params"]}
    assert decayed == {id(net[0].weight), id(net[2].weight)}
    assert spared == {id(p) for p in (net[0].bias, net[1].weight, net[1].bias, net[2].bias)}


def test_without_gradient_matrices_shrink_and_vectors_stay() -> None:
    """AdamW decouples the decay: one step multiplies a matrix by 1 - lr * decay, exactly."""
    net = network()
    before = [p.detach().clone() for p in net.parameters()]
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    adamw(net, 0.1, (0.9, 0.95), weight_decay=0.5).step()
    for old, new in zip(before, net.parameters(), strict=True):
        shrunk = old * (1 - 0.1 * 0.5) if new.ndim >= 2 and new.requires_grad else old
        torch.testing.assert_close(new.detach(), shrunk, rtol=1e-15, atol=0)


def test_betas_and_rate_reach_the_optimiser() -> None:
    """As given, in every group."""
    for group in adamw(network(), PEAK, (0.8, 0.7), weight_decay=0.0).param_groups:
        assert (group["lr"], group["betas"]) == (PEAK, (0.8, 0.7))


def test_what_is_named_is_spared_the_decay() -> None:
    """A parameter by its name, a submodule with all it holds; a prefix of a name is no name."""
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(11)))
    groups = adamw(net, PEAK, (0.9, 0.95), 0.5, ("0.weight", "1")).param_groups
    found = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    assert found == {id(net[i].weight) for i in range(2, 11)}
    with pytest.raises(ValueError, match="'wieght'"):
        adamw(net, PEAK, (0.9, 0.95), 0.5, ("wieght",))


def test_a_module_with_vectors_only_has_one_group() -> None:
    """Torch refuses empty groups; none is made."""
    assert len(adamw(nn.LayerNorm(3), PEAK, (0.9, 0.95), weight_decay=0.1).param_groups) == 1


# --- schedule ---------------------------------------------------------------------------------------


def test_the_cosine_schedule_has_the_values_of_its_corners() -> None:
    """1/(w+1) at first, the peak when warm, the mean of peak and floor half-way, the floor at the end."""
    found = rates("cosine", num_steps=104, warmup_steps=4, count=200)
    assert found[:5] == pytest.approx([1 / 5, 2 / 5, 3 / 5, 4 / 5, 1])
    assert found[4 + 50] == pytest.approx((1 + 0.1) / 2)
    assert found[4 + 25] == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert found[104:] == pytest.approx([0.1] * 96)
    assert all(a > b for a, b in itertools.pairwise(found[4:105]))


def test_the_last_step_of_a_cosine_is_within_a_hair_of_the_floor() -> None:
    """Step num_steps - 1 is the last that is taken; it lies 0.9 (pi / 2 n)^2 above the floor, n steps after warm-up."""
    last = rates("cosine", num_steps=1000, warmup_steps=0, count=1000)[-1]
    assert last == pytest.approx(0.1, abs=1.01 * 0.9 * (math.pi / 2000) ** 2)


def test_the_constant_schedule_warms_up_and_stays() -> None:
    """Linear, then the peak for ever."""
    found = rates("constant", num_steps=10, warmup_steps=3, count=30)
    assert found == pytest.approx([1 / 4, 2 / 4, 3 / 4] + [1] * 27)


def test_without_warm_up_the_first_step_is_at_the_peak() -> None:
    """Nothing is lost on a warm-up of no steps."""
    assert rates("cosine", num_steps=10, warmup_steps=0, count=1) == [1.0]


@pytest.mark.parametrize(("num_steps", "warmup_steps"), [(0, 0), (1, 0), (1, 1), (3, 5)])
def test_short_runs_have_positive_rates(num_steps: int, warmup_steps: int) -> None:
    """No division by zero, no rate of zero, nothing above the peak, however short the run."""
    for rate in rates("cosine", num_steps, warmup_steps, count=8):
        assert 0 < rate <= 1


@settings(deadline=None, derandomize=True)
@given(steps=st.integers(1, 300), warmup=st.integers(0, 50))
def test_rates_rise_to_the_peak_then_fall_to_the_floor(steps: int, warmup: int) -> None:
    """The cosine schedule has one maximum, at the end of the warm-up, and never leaves (0, 1]."""
    found = rates("cosine", warmup + steps, warmup, count=warmup + steps + 1)
    assert found.index(max(found)) == warmup
    assert found[: warmup + 1] == sorted(found[: warmup + 1])
    assert found[warmup:] == sorted(found[warmup:], reverse=True)
    assert found[-1] == pytest.approx(0.1)


# --- moving average ---------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True)
@given(step=st.integers(0, 10**7), decay=st.floats(0.1, 0.99999))
def test_the_decay_ramps_up_to_its_limit(step: int, decay: float) -> None:
    """From 0.1 at the first update, never falling, never above the limit, and at it in the end."""
    assert ema_decay(0, decay) == pytest.approx(0.1)
    assert ema_decay(step, decay) <= ema_decay(step + 1, decay) <= decay
    assert ema_decay(int(10 / (1 - decay)), decay) == decay


def test_the_first_updates_stay_close_to_the_current_weights() -> None:
    """The first update copies, the second keeps 2/11 of the past: the initialisation is forgotten at once."""
    net = nn.Linear(1, 1, bias=False).double()
    average = moving_average(net, decay=0.9999)
    nn.init.constant_(net.weight, 1.0)
    average.update_parameters(net)
    assert average.module.weight.item() == 1.0
    nn.init.constant_(net.weight, 12.0)
    average.update_parameters(net)
    assert average.module.weight.item() == pytest.approx(12 - 11 * 2 / 11)


def test_the_average_follows_its_recursion() -> None:
    """A <- decay a + (1 - decay) w with the ramped decay, in float64 to the last digits."""
    net = nn.Linear(1, 1, bias=False).double()
    average = moving_average(net, decay=0.5)
    expected = 0.0
    for step in range(30):
        nn.init.constant_(net.weight, math.sin(step))
        average.update_parameters(net)
        decay = ema_decay(step, 0.5) if step else 0.0
        expected = decay * expected + (1 - decay) * math.sin(step)
        assert average.module.weight.item() == pytest.approx(expected, abs=1e-14)


def test_the_average_of_a_constant_is_that_constant() -> None:
    """Bit for bit, after any number of updates."""
    net = network()
    average = moving_average(net, decay=0.999)
    for _ in range(50):
        average.update_parameters(net)
    for mean, current in zip(average.module.parameters(), net.parameters(), strict=True):
        assert torch.equal(mean, current)


def test_the_average_does_not_learn_and_does_not_touch_the_network() -> None:
    """No parameter of it takes a gradient, it holds no graph, and the network's own are as before."""
    net = network()
    before = [(p.detach().clone(), p.requires_grad) for p in net.parameters()]
    average = moving_average(net, decay=0.999)
    for _ in range(3):
        average.update_parameters(net)
    assert not any(p.requires_grad or p.grad_fn for p in average.parameters())
    for (value, learns), p in zip(before, net.parameters(), strict=True):
        assert torch.equal(p, value)
        assert p.requires_grad == learns


def test_buffers_of_the_average_are_those_of_the_network() -> None:
    """Buffers are copied, not averaged."""
    net = nn.BatchNorm1d(2)
    average = moving_average(net, decay=0.999)
    for _ in range(3):
        net(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))
        average.update_parameters(net)
    assert torch.equal(average.module.running_mean, net.running_mean)
