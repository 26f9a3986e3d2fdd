"""The sections `guidance` and `sample_eval`: how samples are drawn."""

from typing import Literal

from pydantic import Field, model_validator

from flowprior.core.section import Section


class Guidance(Section):
    """Classifier-free guidance of the guided figures; the others have none."""

    scale: float = Field(ge=1)
    schedule: Literal["linear", "constant"]
    low: float = Field(ge=0, lt=1)
    """First time of the head (0 noise, 1 data) that is guided."""
    high: float = Field(gt=0, le=1)
    """Where that ends."""

    @model_validator(mode="after")
    def _interval_is_one(self) -> "Guidance":
        if self.low >= self.high:
            raise ValueError(
                f"guidance.low ({self.low}) must be below guidance.high ({self.high}); "
                "for no guidance set guidance.scale to 1"
            )
        return self


class SampleEval(Section):
    """How many samples, and how finely they are drawn."""

    num_samples: int = Field(ge=10)
    batch_images: int = Field(ge=1)
    num_iterations: int = Field(ge=1)
    head_steps: int = Field(ge=1)
    final_head_steps: int | None = Field(ge=1)
    """Steps of the head in the last iteration, towards which they fall from head_steps; null: as many."""
    solver: Literal["euler", "heun"]
    churn: float = Field(ge=0)
    """Noise of the head's SDE; 0 is the ODE."""
    temperature: float = Field(gt=0)
    precision: Literal["fp32", "bf16"]
    compile: bool
    """Run MAR through torch.compile."""

    @model_validator(mode="after")
    def _steps_fit(self) -> "SampleEval":
        if self.final_head_steps is not None and self.final_head_steps > self.head_steps:
            raise ValueError(
                f"final_head_steps ({self.final_head_steps}) must be at most head_steps ({self.head_steps})"
            )
        if self.churn and self.solver != "euler":
            raise ValueError(f"churn ({self.churn}) needs solver euler, found {self.solver}")
        return self
