"""What the encoder's output becomes: one linear map, or a posterior."""

import pytest
import torch
from torch import nn

from flowprior.autoencoder.bottleneck import KLBottleneck, PlainBottleneck, build_bottleneck
from flowprior.core import rng

from .small import count, normal


def test_plain_codes_are_one_linear_map() -> None:
    """Latents and mean are the same tensor, and there is no posterior."""
    with rng.scoped(0):
        bottleneck = PlainBottleneck(6, 3)
    tokens = normal(2, 5, 6)
    latents, mean, log_variance, _ = bottleneck(tokens)
    assert latents is mean
    assert log_variance is None
    weight, bias = bottleneck.linear.weight, bottleneck.linear.bias
    torch.testing.assert_close(latents, tokens @ weight.T + bias)


def test_without_noise_the_kl_latents_are_the_posterior_mean() -> None:
    """And with noise e they are mean + exp(log_variance / 2) e."""
    with rng.scoped(0):
        bottleneck = KLBottleneck(6, 3)
    tokens, noise = normal(2, 5, 6), normal(2, 5, 3, tag="noise")
    assert bottleneck(tokens).latents is not None
    assert torch.equal(bottleneck(tokens).latents, bottleneck(tokens).mean)
    latents, mean, log_variance, _ = bottleneck(tokens, noise)
    assert log_variance.shape == (2, 5, 3)
    torch.testing.assert_close((latents - mean) / noise, log_variance.div(2).exp())


@pytest.mark.parametrize(("bias", "clamped"), [(1e4, 20.0), (-1e4, -30.0), (1.5, 1.5)])
def test_the_log_variance_is_clamped_to_what_float32_bears(bias: float, clamped: float) -> None:
    """To [-30, 20], as in the authors' code; latents stay finite."""
    bottleneck = KLBottleneck(4, 2)
    nn.init.zeros_(bottleneck.linear.weight)
    with torch.no_grad():
        bottleneck.linear.bias.copy_(torch.tensor([0.5, -0.5, bias, bias]))
    latents, mean, log_variance, _ = bottleneck(normal(1, 3, 4), torch.ones(1, 3, 2))
    assert log_variance.unique().tolist() == [clamped]
    assert mean[0, 0].tolist() == [0.5, -0.5]
    assert latents.isfinite().all()


def test_the_posterior_is_float32_under_autocast() -> None:
    """The exponential of a bfloat16 log-variance would be off by percents."""
    with rng.scoped(0):
        bottleneck = KLBottleneck(6, 3)
    with torch.autocast("cpu", torch.bfloat16):
        codes = bottleneck(normal(2, 5, 6), normal(2, 5, 3, tag="noise"))
    assert {part.dtype for part in codes if part is not None} == {torch.float32}


@pytest.mark.parametrize(("kind", "channels"), [("plain", 3), ("kl", 6)])
def test_a_bottleneck_has_one_linear_map(kind: str, channels: int) -> None:
    """From width to d channels, or to 2 d where there is a posterior."""
    bottleneck = build_bottleneck(kind, width=6, dim=3, num_tokens=2)
    assert count(bottleneck) == 6 * channels + channels
    assert bottleneck(normal(1, 2, 6)).latents.shape == (1, 2, 3)
