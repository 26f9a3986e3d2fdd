"""The sections `project` and `train_flow`: the targets, and the flow that learns them."""

from typing import Literal

from pydantic import Field, model_validator

from flowprior.core.section import Section
from flowprior.training.config import LargeTraining


class Project(Section):
    """How features get to the dimension of the latents."""

    operator: Literal["random", "avg_pool", "pca"]
    dim: int = Field(ge=1, le=4096)
    """Dimension d of targets and latents."""


class TrainFlow(LargeTraining):
    """The flow prior's velocity and its training."""

    width: int = Field(ge=8)
    depth: int = Field(ge=1)
    batch_vectors: int = Field(ge=1)
    time_groups: int = Field(ge=1)
    """Groups of a batch that share a time, and with it the modulation."""
    eval_vectors: int = Field(ge=100)

    @model_validator(mode="after")
    def _groups_fit(self) -> "TrainFlow":
        if self.batch_vectors % self.time_groups:
            raise ValueError(
                f"time_groups ({self.time_groups}) must divide batch_vectors ({self.batch_vectors})"
            )
        self._divides("time_groups", self.time_groups)
        return self
