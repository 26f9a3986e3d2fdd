"""A model made ready to sample gives the same tokens."""

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowprior.core import rng
from flowprior.mar.model import MAR
from flowprior.mar.shape import MARShape

SETTINGS: list[dict[str, Any]] = [
    {"guidance_scale": 1.0, "solver": "euler"},
    {"guidance_scale": 2.0, "solver": "heun", "guidance_interval": (0.25, 0.75)},
]


@pytest.fixture
def mar() -> MAR:
    shape = MARShape(9, 3, 4, 24, 1, 1, 2, 2, 16, 1, 0.0)
    with rng.scoped(0, "test"):
        model = MAR(shape)
        nn.init.normal_(model.head.output.weight, std=0.1)
    return model.eval().requires_grad_(False)


def sample(mar: MAR, bf16: bool = False, **settings: Any) -> Tensor:
    device = mar.encoder_positions.device
    labels = torch.arange(6, device=device) % 4
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        return mar.sample(
            labels, rng.generator(0, "draw"), num_iterations=4, head_steps=4, **settings
        )


@pytest.mark.parametrize("settings", SETTINGS)
def test_weights_that_are_cast_once_change_nothing(mar: MAR, settings: dict[str, Any]) -> None:
    wanted = sample(mar, bf16=True, **settings)
    ready = deepcopy(mar).ready_to_sample("bf16")
    assert ready.input.weight.dtype == torch.bfloat16
    assert ready.encoder_positions.dtype == torch.float32
    assert torch.equal(sample(ready, bf16=True, **settings), wanted)


def test_compiled_are_the_blocks_and_the_head(mar: MAR, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    ready = deepcopy(mar).ready_to_sample("fp32", compile=True)
    assert [type(module).__name__ for module in compiled] == ["Block", "Block", "VelocityMLP"]
    assert torch.equal(sample(ready), sample(mar))


@pytest.mark.gpu
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_replayed_heads_give_the_same(mar: MAR, settings: dict[str, Any], bf16: bool) -> None:
    """Twice, in autocasts of their own."""
    mar.to("cuda")
    draws = partial(sample, bf16=bf16, **settings)
    ready = deepcopy(mar).ready_to_sample("bf16" if bf16 else "fp32")
    for _ in range(2):
        assert torch.equal(draws(ready), draws(mar))
