"""Rehearsal: a training session on the meta device, which counts what a stage's own loss terms cost."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

from torch import nn

from flowprior.costs.flops import META
from flowprior.training.plan import Optimizer
from flowprior.training.session import Session


class Rehearsal(Session):
    """A session of one rank on the meta device: losses take their backward passes, nothing is updated or written.

    Attributes:
        learned: Modules of its learners, by name.
    """

    def __init__(self) -> None:
        # Not the parent's, which starts a launch and opens checkpoints and tracking.
        self.stage, self.seed = "plan", 0
        self.learned: dict[str, nn.Module] = {}
        self.accelerator = SimpleNamespace(
            num_processes=1,
            process_index=0,
            device=META,
            autocast=nullcontext,
            reduce=lambda values, reduction: values,
        )
        self._part = 0

    def learner(self, name: str, module: nn.Module, optimizer: Optimizer | None = None) -> Any:
        """What takes a learner's place: its module, and updates that are backward passes."""
        self.learned[name] = module
        return SimpleNamespace(module=module, update=lambda loss: loss.backward())

    def looks(self, step: int) -> bool:
        """False: no row of the curve ends here, so that a usual step is counted."""
        return False
