"""A module whose networks nobody trains, whatever its owner does to it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """A module with networks inside that are no parameters, no submodules and no state of it.

    As part of a model it survives what the model's owner calls: `requires_grad_`, `apply`, `train`, `half`, an
    optimiser over `parameters()`, `copy.deepcopy`, pickling. It moves with `.to(device)` and keeps its precision.

    Args:
        parts: The networks by name; they stop learning here.
        persistent: Whether `state_dict` holds them, as `<name>.<tensor>`. What a state dict has of them is loaded in
            either case.
    """

    def __init__(self, parts: Mapping[str, nn.Module], persistent: bool = False) -> None:
        super().__init__()
        for part in parts.values():
            part.requires_grad_(False).eval()
        self._parts = dict(parts)  # torch registers modules, not dicts of modules
        self.persistent = persistent

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        for part in self._parts.values():
            if isinstance(part, Frozen):
                return part.device
            for tensor in (*part.parameters(), *part.buffers()):
                return tensor.device
        return torch.device("cpu")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        here = torch.empty(0, device=self.device)
        there = fn(here).device
        if there != here.device and there.type != "meta":  # to_empty would forget what was learned
            for part in self._parts.values():
                part.to(there)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.persistent:
            for name, part in self._parts.items():
                for key, value in part.state_dict(keep_vars=keep_vars).items():
                    destination[f"{prefix}{name}.{key}"] = value

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load what there is of each part; nothing is missing where nothing was saved."""
        own = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
        for name, part in self._parts.items():
            start = f"{prefix}{name}."
            saved = {key[len(start) :]: own.pop(key) for key in list(own) if key.startswith(start)}
            if saved:
                try:
                    part.load_state_dict(saved)
                except RuntimeError as error:
                    error_msgs.append(f"{prefix}{name}: {error}")
            elif self.persistent:
                missing_keys.append(start)
        super()._load_from_state_dict(
            own, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
