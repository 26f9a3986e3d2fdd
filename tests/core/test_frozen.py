"""Frozen networks inside other people's models: nothing the owner calls changes them."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flowprior.core import rng
from flowprior.core.frozen import Frozen


class Holder(Frozen):
    """A frozen line."""

    def __init__(self, line: nn.Module, persistent: bool = False) -> None:
        super().__init__({"line": line}, persistent)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._parts["line"](x)
        return out


def owner(persistent: bool = False) -> nn.ModuleDict:
    """A model that learns, with a frozen part."""
    with rng.scoped(0):
        line = nn.Linear(2, 2)
        return nn.ModuleDict({"own": nn.Linear(2, 2), "frozen": Holder(line, persistent)})


def line_of(model: nn.ModuleDict) -> nn.Linear:
    """The network that nobody trains."""
    line = model["frozen"]._parts["line"]
    assert isinstance(line, nn.Linear)
    return line


def step(model: nn.ModuleDict) -> object:
    """One step of an optimiser over everything."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.5)
    model["frozen"](model["own"](torch.ones(3, 2))).square().sum().backward()
    return optimizer.step()


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.requires_grad_(True),
        lambda model: model.apply(lambda part: [p.data.zero_() for p in part.parameters()]),
        lambda model: model.train(),
        lambda model: model.half(),
        lambda model: model.double(),
        lambda model: model.to_empty(device="meta"),
        step,
    ],
    ids=["requires_grad_", "apply", "train", "half", "double", "to_empty", "optimiser"],
)
def test_what_the_owner_calls_leaves_it_alone(call: Callable[[nn.ModuleDict], object]) -> None:
    model = owner()
    before = {name: tensor.clone() for name, tensor in line_of(model).state_dict().items()}
    call(model)
    for name, tensor in line_of(model).state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.dtype == torch.float32
    assert not any(p.requires_grad or p.grad is not None for p in line_of(model).parameters())
    assert not line_of(model).training


def test_it_is_no_part_of_the_owners_parameters_and_state() -> None:
    model = owner()
    assert [name for name, _ in model.named_parameters()] == ["own.weight", "own.bias"]
    assert list(model.state_dict()) == ["own.weight", "own.bias"]
    model.load_state_dict(owner().state_dict())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_has_its_own(again: Callable[[nn.ModuleDict], nn.ModuleDict]) -> None:
    model = owner()
    other = again(model)
    assert torch.equal(line_of(other).weight, line_of(model).weight)
    line_of(other).weight.data.zero_()
    assert line_of(model).weight.abs().sum() > 0


def test_it_moves_with_its_owner() -> None:
    model = owner().to("meta")
    assert line_of(model).weight.device.type == "cpu"  # to meta would be to forget
    assert model["frozen"].device.type == "cpu"


@pytest.mark.gpu
def test_it_moves_to_a_gpu_with_its_owner() -> None:
    model = owner().to("cuda")
    assert model["frozen"].device.type == "cuda"
    assert model["frozen"](model["own"](torch.ones(1, 2, device="cuda"))).isfinite().all()


def test_asked_for_it_is_in_the_state_and_loaded_from_there() -> None:
    """Also by an owner that would not save it."""
    saved = owner(persistent=True)
    with torch.no_grad():
        line_of(saved).weight.fill_(3.0)
    state = saved.state_dict()
    assert "frozen.line.weight" in state
    for persistent in (True, False):
        model = owner(persistent)
        model.load_state_dict(state)
        assert torch.equal(line_of(model).weight, line_of(saved).weight)


def test_a_state_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"Missing key.*frozen\.line"):
        owner(persistent=True).load_state_dict(owner().state_dict())
    state = owner(persistent=True).state_dict()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*frozen\.curve"):
        owner().load_state_dict(state | {"frozen.curve": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"(?s)frozen\.line: .*size mismatch"):
        owner().load_state_dict(state | {"frozen.line.weight": torch.zeros(3, 2)})
