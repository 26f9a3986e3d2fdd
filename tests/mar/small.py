"""A small MAR, and what it is asked."""

from typing import Any

import torch
from hypothesis import settings
from torch import Tensor

from flowprior.core import rng
from flowprior.flow.velocity import VelocityMLP
from flowprior.mar.masking import MaskedBatch, draw_orders
from flowprior.mar.model import MAR
from flowprior.mar.shape import MARShape

PROPERTY = settings(deadline=None, derandomize=True, max_examples=60)
N, D, CLASSES = 7, 3, 4
SMALL = MARShape(
    num_tokens=N,
    dim=D,
    num_classes=CLASSES,
    width=16,
    encoder_depth=1,
    decoder_depth=1,
    num_heads=2,
    num_buffer=2,
    head_width=16,
    head_depth=1,
    dropout=0.0,
)


def normal(*shape: int, tag: str = "x") -> Tensor:
    """Fixed standard normal numbers, float32."""
    return torch.randn(*shape, generator=rng.generator(0, tag))


def fresh(shape: MARShape = SMALL) -> MAR:
    """A MAR at its initialisation, the same at every call."""
    with rng.scoped(0, "mar"):
        return MAR(shape).eval()


def trained(shape: MARShape = SMALL) -> MAR:
    """A MAR that is off its initialisation in every parameter, so that its head does not answer zero."""
    model = fresh(shape)
    draws = rng.generator(0, "trained")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=draws)
    return model


def batch(b: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, labels and orders."""
    return (
        normal(b, N, D, tag="tokens"),
        torch.arange(b) % CLASSES,
        draw_orders(b, N, rng.generator(0, "orders")),
    )


def masking(b: int = 5, num_masked: int = 4, draws: int = 2) -> MaskedBatch:
    """The arguments of `forward` with a given number of masked tokens."""
    tokens, labels, orders = batch(b)
    noise = normal(draws, b, num_masked, D, tag="noise")
    t = torch.rand(draws, b, num_masked, generator=rng.generator(0, "t"))
    return MaskedBatch(tokens, labels, orders, num_masked, noise, t)


def places(index: Tensor) -> Tensor:
    """A mask [b, n] that is true at the given places."""
    return torch.zeros(len(index), N, dtype=torch.bool).scatter(1, index, True)


class Constant(VelocityMLP):
    """A head whose velocity is its condition's first channels, wherever and whenever."""

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return condition[..., : x.shape[-1]]


def sample(model: MAR, tag: str = "sample", b: int = 3, **options: Any) -> Tensor:
    """Sequences drawn with a generator of their own."""
    plain: dict[str, Any] = {"num_iterations": 3, "head_steps": 4}
    return model.sample(torch.arange(b) % CLASSES, rng.generator(0, tag), **plain | options)
