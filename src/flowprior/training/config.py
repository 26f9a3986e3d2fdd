"""What the sections of training stages share."""

from typing import Any, Literal

from pydantic import Field

from flowprior.core.section import Section


class Optimizer(Section):
    """AdamW; betas (0.9, beta2)."""

    lr: float = Field(gt=0, le=10)
    warmup_steps: int = Field(ge=0)
    schedule: Literal["cosine", "constant"]
    beta2: float = Field(gt=0, lt=1)
    weight_decay: float = Field(ge=0, le=10)
    max_grad_norm: float = Field(gt=0)
    ema_decay: float = Field(ge=0, lt=1)


class Training(Section):
    """What every training stage has."""

    steps: int = Field(ge=1)
    log_steps: int = Field(ge=1)
    checkpoint_steps: int = Field(ge=1)
    precision: Literal["fp32", "bf16"]
    optimizer: Optimizer


class LargeTraining(Training):
    """What a training stage of the pipeline has besides."""

    compile: bool
    """Run the modules through torch.compile."""
    accumulate: int = Field(ge=1)
    """Parts of a batch whose gradients are added up before an update; memory falls with it."""

    @property
    def plan(self) -> dict[str, Any]:
        """The arguments of the session's `Plan`."""
        return {
            "num_steps": self.steps,
            "log_steps": self.log_steps,
            "checkpoint_steps": self.checkpoint_steps,
            "precision": self.precision,
            "accumulate": self.accumulate,
            "compile": self.compile,
        }

    def _divides(self, name: str, batch: int) -> None:
        if batch % self.accumulate:
            raise ValueError(f"accumulate ({self.accumulate}) must divide {name} ({batch})")
