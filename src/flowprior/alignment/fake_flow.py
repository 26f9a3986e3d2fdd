"""Training of `dmd`'s fake flow beside the latents it models."""

import torch
from torch import Tensor

from flowprior.alignment.flows import DistributionMatching
from flowprior.alignment.objective import Objective
from flowprior.core.codes import Codes
from flowprior.core.rng import Draw
from flowprior.training.plan import Optimizer
from flowprior.training.session import Session


class FakeFlow:
    """The fake flow of an objective, as a learner of the session; nothing where the objective has none.

    Its state is in the session's checkpoints, so a killed run goes on with both.

    Args:
        session: Where it is registered; before `session.steps`.
        objective: Any objective.
        num_updates: Updates of the fake flow for one of the latents.
        lr: Its learning rate, constant; AdamW as in the paper's flow, no moving average.
    """

    def __init__(
        self, session: Session, objective: Objective, *, num_updates: int, lr: float
    ) -> None:
        self._session = session
        self._objective = objective if isinstance(objective, DistributionMatching) else None
        self._num_updates = num_updates
        if self._objective is not None:
            optimizer = Optimizer(
                lr=lr,
                warmup_steps=0,
                schedule="constant",
                beta2=0.95,
                weight_decay=0.0,
                max_grad_norm=1.0,
                ema_decay=0.0,
            )
            self._learner = session.learner("fake_flow", self._objective.fake, optimizer)

    def follow(self, codes: Codes, step: int, draw: Draw) -> dict[str, Tensor]:
        """Train it on the latents as they are; its loss, to be logged."""
        if self._objective is None:
            return {}
        total = torch.zeros((), device=self._session.device)
        for update in range(self._num_updates):
            fresh = draw._replace(generator=self._session.generator("fake", step, update))
            with self._session.autocast():
                loss = self._objective.fake_loss(self._learner.module, codes, fresh)
            self._learner.update(loss)
            total += loss.detach()
        return {"fake_loss": total / self._num_updates}
