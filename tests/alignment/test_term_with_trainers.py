"""A term under other people's trainers: accelerate and Lightning Fabric give what a plain loop gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .latents import DIM, learned_prior, normal, targets

STEPS, IMAGES, TOKENS = 4, 8, 5


def encoder() -> nn.Linear:
    """Equal at every call."""
    made = nn.Linear(6, DIM)
    nn.init.constant_(made.bias, 0.1)
    with torch.no_grad():
        made.weight.copy_(normal(DIM, 6, tag="encoder"))
    return made


def pull_of(name: str) -> Any:
    """A term with targets."""
    return learned_prior().objective(name, targets=targets, weight=0.5)


def losses(
    model: nn.Module,
    pull: Any,
    optimizer: Any,
    backward: Callable[[Tensor], object],
) -> list[float]:
    """The loop that is in the docs."""
    found = []
    for step in range(STEPS):
        latents = model(normal(IMAGES, TOKENS, 6, tag=f"batch {step}"))
        loss = latents.square().mean() + pull(latents)
        optimizer.zero_grad()
        backward(loss)
        optimizer.step()
        pull.follow(latents)
        found.append(float(loss.detach()))
    return found


def plain(name: str) -> list[float]:
    """Without a trainer."""
    model, pull = encoder(), pull_of(name)
    return losses(model, pull, torch.optim.SGD(model.parameters(), 0.1), Tensor.backward)


@pytest.mark.parametrize("name", ["flow_prior", "dmd", "sliced_w2"])
def test_fabric_gives_what_a_plain_loop_gives(name: str) -> None:
    lightning = pytest.importorskip("lightning")
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    model, pull = encoder(), pull_of(name)
    module, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), 0.1))
    found = losses(module, fabric.to_device(pull), optimizer, fabric.backward)
    assert found == pytest.approx(plain(name), rel=1e-5)


@pytest.mark.parametrize("name", ["flow_prior", "dmd", "sliced_w2"])
def test_accelerate_gives_what_a_plain_loop_gives(name: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model, pull = encoder(), pull_of(name)
    module, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
    found = losses(module, pull.to(accelerator.device), optimizer, accelerator.backward)
    assert found == pytest.approx(plain(name), rel=1e-5)


def test_a_fabric_checkpoint_goes_on_exactly(tmp_path: Any) -> None:
    """The term's state is in it, dmd's own flow too."""
    lightning = pytest.importorskip("lightning")
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    latents = normal(IMAGES, TOKENS, DIM, tag="latents")
    first, second = pull_of("dmd"), pull_of("dmd")
    for _ in range(3):
        first(latents)
        first.follow(latents)
    fabric.save(tmp_path / "state.ckpt", {"pull": first.state_dict()})
    second.load_state_dict(fabric.load(tmp_path / "state.ckpt")["pull"])
    assert torch.equal(first(latents), second(latents))
    assert first.follow(latents) == second.follow(latents)
