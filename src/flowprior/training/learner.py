"""A module with its optimiser, schedule and moving average."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from flowprior.core.optim import adamw, moving_average, schedule
from flowprior.training.plan import Optimizer, Plan


@runtime_checkable
class TrainingRun(Protocol):
    """What a learner asks of the session that it belongs to; see `flowprior.training.session.Session`."""

    accelerator: Accelerator
    plan: Plan

    def non_finite(self, name: str, what: str, value: Tensor) -> Exception:
        """The error for a loss or gradient that is not finite."""
        ...


class Learner:
    """A module with its optimiser, schedule and moving average. Made by `Session.learner`.

    Attributes:
        module: As prepared for the launch (possibly wrapped for many ranks): call it to train.
        averaged: The moving average: use it for what is kept.
    """

    def __init__(
        self, session: TrainingRun, name: str, module: nn.Module, optimizer: Optimizer
    ) -> None:
        accelerator = session.accelerator
        module = module.to(accelerator.device)
        self._average = moving_average(module, optimizer.ema_decay)
        betas = (0.9, optimizer.beta2)
        inner = adamw(module, optimizer.lr, betas, optimizer.weight_decay, optimizer.undecayed)
        self._rates = schedule(
            inner, optimizer.schedule, session.plan.num_steps, optimizer.warmup_steps
        )
        if session.plan.compile:
            module.compile()  # in place: names of parameters stay what they are
        self.module = accelerator.prepare_model(module)
        self._optimizer = inner
        self._max_grad_norm = optimizer.max_grad_norm
        self._session = session
        self._name = name
        self._held = 0

    @property
    def averaged(self) -> nn.Module:
        """The moving average of the module's weights."""
        return self._average.module

    def update(self, loss: Tensor) -> Tensor | None:
        """One step down the gradient of `loss`; returns the gradient's norm before clipping.

        With `Plan.accumulate` above 1 the step is taken at every so-manieth call, along the mean of
        the gradients; other calls return None.

        Raises:
            NonFiniteError: Loss or gradient is not finite; nothing was changed.
        """
        accumulate = self._session.plan.accumulate
        if not self._held:
            self._optimizer.zero_grad(set_to_none=True)
        if not torch.isfinite(loss):
            raise self._session.non_finite(self._name, "loss", loss)
        self._session.accelerator.backward(loss / accumulate if accumulate > 1 else loss)
        self._held = (self._held + 1) % accumulate
        if self._held:
            return None
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self._max_grad_norm)
        if not torch.isfinite(norm):
            raise self._session.non_finite(self._name, "gradient norm", norm)
        self._optimizer.step()
        self._rates.step()
        self._average.update_parameters(self._session.accelerator.unwrap_model(self.module))
        return norm

    @property
    def learning_rate(self) -> float:
        """The rate of the next update."""
        return float(self._rates.get_last_lr()[0])

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "module": self._session.accelerator.unwrap_model(self.module).state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "rates": self._rates.state_dict(),
            "average": self._average.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state."""
        self._session.accelerator.unwrap_model(self.module).load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._rates.load_state_dict(state["rates"])
        self._average.load_state_dict(state["average"])
