"""Training of an objective's own flow, of the latents as they are, beside the latents."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from flowprior.core.codes import Codes
from flowprior.core.optim import adamw
from flowprior.core.ranks import mean_over_ranks
from flowprior.core.rng import Draw
from flowprior.flow.losses import Velocity


@runtime_checkable
class HasFakeFlow(Protocol):
    """An objective with a flow of the latents, as `dmd`; one of your own may have one too."""

    fake: nn.Module

    def fake_loss(self, velocity: Velocity, codes: Codes, draw: Draw) -> Tensor:
        """What the flow learns by."""
        ...


@runtime_checkable
class Trains(Protocol):
    """What trains the flow: `OwnLearner`, or a learner of the pipeline's session."""

    @property
    def module(self) -> Any:
        """The flow, as it is to be called in training."""
        ...

    def update(self, loss: Tensor) -> Any:
        """One step down the gradient of the loss."""
        ...


class FakeFlow:
    """An objective's own flow, and what trains it.

    Args:
        objective: The objective that asks it.
        num_updates: Updates of it for one of the latents.
        learner: What trains it.
    """

    def __init__(self, objective: HasFakeFlow, num_updates: int, learner: Trains) -> None:
        self._objective = objective
        self._num_updates = num_updates
        self.learner = learner

    def follow(self, codes: Codes, draws: Callable[[int], Draw]) -> Tensor:
        """Train it on the latents as they are.

        Args:
            codes: Their latents; no gradient reaches them.
            draws: Fresh randomness for each update.

        Returns:
            Its loss, a mean over updates.
        """
        total = torch.zeros((), device=codes.latents.device)
        for update in range(self._num_updates):
            with torch.enable_grad():
                loss = self._objective.fake_loss(self.learner.module, codes, draws(update))
            with torch.autocast(loss.device.type, enabled=False):
                self.learner.update(loss)
            total += loss.detach()
        return total / self._num_updates


class OwnLearner:
    """Trains a flow by AdamW at a constant rate, clipped at norm 1, as the paper's flow; alike on all ranks.

    Args:
        flow: What learns.
        lr: Learning rate.
    """

    def __init__(self, flow: nn.Module, lr: float) -> None:
        self.module = flow
        self._optimizer = adamw(flow, lr, (0.9, 0.95), weight_decay=0.0)

    def update(self, loss: Tensor) -> None:
        """One step down the gradient of the loss.

        Raises:
            ValueError: The gradient is not finite.
        """
        learning = [p for p in self.module.parameters() if p.requires_grad]
        gradients = list(torch.autograd.grad(loss, learning))
        mean_over_ranks(gradients)
        for parameter, gradient in zip(learning, gradients, strict=True):
            parameter.grad = gradient
        norm = nn.utils.clip_grad_norm_(learning, 1.0)
        if not torch.isfinite(norm):
            raise ValueError(
                "the latents' own flow diverged: its gradient is not finite; lower fake_lr, or look at the latents"
            )
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Weights and moments, as tensors by name."""
        found = {f"flow.{name}": tensor for name, tensor in self.module.state_dict().items()}
        for index, of_one in self._optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{index}.{name}": tensor for name, tensor in of_one.items()}
        return found

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave.

        Raises:
            RuntimeError: It is another flow's.
        """
        weights = {name[5:]: value for name, value in state.items() if name.startswith("flow.")}
        self.module.load_state_dict(weights)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                moments.setdefault(int(index), {})[key] = value.clone()
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def to(self, device: torch.device) -> None:
        """Move the flow, and the moments with it."""
        self.module.to(device)
        for of_one in self._optimizer.state.values():
            for name, value in of_one.items():
                if isinstance(value, Tensor) and (value.ndim or value.device.type != "cpu"):
                    of_one[name] = value.to(device)
