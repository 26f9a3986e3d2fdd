"""Checks that weights fit a model, by names and shapes, before either takes memory."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook


def check_model(make: Callable[[], nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Make sure that a model would have the names and shapes of these tensors, before it takes memory.

    It is built on the meta device: sizes that a stranger wrote down cost nothing there. And it is
    not built to the end where it gets far more parameters than there are tensors.

    Args:
        make: Builds the model; what it raises is raised.
        tensors: A state that is to be loaded.

    Raises:
        ValueError: It would have others.
    """
    allowed = 2 * len(tensors) + 100  # some are replaced while a model is built

    def count(*_: object) -> None:
        nonlocal allowed
        allowed -= 1
        if allowed < 0:
            raise ValueError(f"it would have far more than the {len(tensors)} tensors there are")

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            expected = {name: list(t.shape) for name, t in make().state_dict().items()}
    finally:
        hook.remove()
    for name in sorted(expected.keys() | tensors.keys()):
        found = list(tensors[name].shape) if name in tensors else "missing"
        if found != (wanted := expected.get(name, "no such tensor")):
            raise ValueError(f"{name} is {found}, expected {wanted}")
