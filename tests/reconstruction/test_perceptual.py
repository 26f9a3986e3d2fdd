"""LPIPS: the package's own numbers, eval mode for good, gradients that stay finite."""

import sys
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

from flowprior.core import rng
from flowprior.reconstruction.perceptual import Perceptual, build_perceptual, warmup

lpips: Any = pytest.importorskip("lpips", reason="pip install 'flowprior[imagenet]'")


@pytest.fixture(scope="module")
def perceptual() -> Perceptual:
    """VGG16 with random weights, and the package's own weights of its channels."""
    with rng.scoped(0, "vgg"):
        return build_perceptual(pretrained=False)


def images(tag: str, b: int = 2) -> Tensor:
    """Fixed noise in [-1, 1]."""
    return torch.rand(b, 3, 32, 32, generator=rng.generator(0, tag)) * 2 - 1


def test_distances_are_the_packages(perceptual: Perceptual) -> None:
    x, y = images("x"), images("y")
    with torch.no_grad():
        expected = perceptual.network(x, y).flatten()
        found = perceptual(x, y)
    assert found.shape == (2,)
    assert (found > 0).all()
    torch.testing.assert_close(found, expected)


def test_an_image_is_at_no_distance_from_itself(perceptual: Perceptual) -> None:
    assert perceptual(images("x"), images("x")).tolist() == [0, 0]


def test_dropout_never_acts_also_under_a_training_parent(perceptual: Perceptual) -> None:
    """The authors had it on; without the pin two calls differ."""
    parent = nn.ModuleDict({"perceptual": perceptual, "other": nn.Dropout()}).train()
    assert parent["other"].training
    assert any(isinstance(module, nn.Dropout) for module in perceptual.modules())
    assert not any(module.training for module in perceptual.modules())
    one, again = (perceptual(images("x"), images("y")) for _ in range(2))
    assert torch.equal(one, again)


def test_gradients_reach_the_restored_image_and_no_weight(perceptual: Perceptual) -> None:
    x, y = images("x"), images("y").requires_grad_()
    perceptual(x, y).sum().backward()
    assert y.grad is not None
    assert y.grad.abs().sum() > 0
    assert not any(p.requires_grad or p.grad is not None for p in perceptual.parameters())


class Dead(nn.Module):
    """Features that are 0 in all channels, as those behind a ReLU may be."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [torch.relu(x - 10)]


def test_gradients_are_finite_where_all_channels_are_dead() -> None:
    """The package's own norm gives NaN there, and one such place ends a run."""
    network = nn.Module()
    network.net, network.scaling_layer = Dead(), nn.Identity()
    network.lins = nn.ModuleList([nn.Conv2d(3, 1, 1)])  # codespell:ignore lins
    y = images("y").requires_grad_()
    Perceptual(network)(images("x"), y).sum().backward()
    assert y.grad is not None
    assert y.grad.isfinite().all()


def test_the_warm_up_is_linear_and_ends() -> None:
    assert [warmup(step) for step in (0, 2_500, 10_000, 50_000)] == [0, 0.25, 1, 1]
    assert warmup(0, 0) == 1


def test_without_the_package_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'flowprior\[imagenet\]'"):
        build_perceptual()


def test_without_network_the_error_says_where_the_weights_belong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(**_: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(lpips, "LPIPS", unreachable)
    with pytest.raises(RuntimeError, match=r"no network.*vgg16-397923af\.pth into .*checkpoints"):
        build_perceptual()
