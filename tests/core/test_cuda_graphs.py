"""Replaying kernels gives what calling the module gives."""

import pytest
import torch
from torch import Tensor, nn

from flowprior.core import rng
from flowprior.core.cuda_graphs import Replayed
from flowprior.flow.velocity import VelocityMLP


@pytest.fixture
def head() -> VelocityMLP:
    with rng.scoped(0, "test"):
        velocity = VelocityMLP(3, 32, 2, condition_dim=5)
        nn.init.normal_(velocity.output.weight)
    return velocity


def inputs(b: int, m: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    draw = rng.generator(0, b, m)
    x, condition = (torch.randn(b, m, d, generator=draw).to(device) for d in (3, 5))
    return x, torch.full((1, 1), 0.25, device=device), condition


def test_on_a_cpu_it_is_the_module(head: VelocityMLP) -> None:
    x, t, condition = inputs(4, 2, "cpu")
    with torch.no_grad():
        assert torch.equal(Replayed(head)(x, t, condition=condition), head(x, t, condition))


def test_with_gradients_it_is_the_module(head: VelocityMLP) -> None:
    x, t, condition = inputs(4, 2, "cpu")
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(Replayed(head)(x, t, condition).sum(), x)
    assert gradient.abs().sum() > 0


@pytest.mark.gpu
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@torch.no_grad()
def test_replays_are_equal_to_the_bit(head: VelocityMLP, bf16: bool) -> None:
    """For several shapes in turn, each twice, in autocasts of their own: what one frees, the next overwrites."""
    head.to("cuda")
    replayed = Replayed(head)
    for b, m in [(4, 1), (64, 3), (4, 1), (4, 2), (64, 3)]:
        x, t, condition = inputs(b, m, "cuda")
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            wanted, found = head(x, t, condition), replayed(x, t, condition=condition)
            other = replayed(x + 1, t, condition=condition)
        assert torch.equal(found, wanted)
        assert not torch.equal(other, wanted)
        torch.full((1 << 20,), torch.nan, device="cuda")


@pytest.mark.gpu
@torch.no_grad()
def test_gradients_on_a_gpu(head: VelocityMLP) -> None:
    head.to("cuda")
    x, t, condition = inputs(4, 2, "cuda")
    replayed = Replayed(head)
    replayed(x, t, condition)
    with torch.enable_grad():
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(replayed(x, t, condition).sum(), x)
    assert gradient.abs().sum() > 0
