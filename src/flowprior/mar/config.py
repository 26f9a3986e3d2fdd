"""The section `train_mar`: MAR and its training."""

from typing import Literal

from pydantic import Field, model_validator

from flowprior.training.config import LargeTraining


class TrainMAR(LargeTraining):
    """MAR and its training."""

    width: int = Field(ge=8)
    encoder_depth: int = Field(ge=1)
    decoder_depth: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    num_buffer: int = Field(ge=1)
    head_width: int = Field(ge=8)
    head_depth: int = Field(ge=1)
    head_draws: int = Field(ge=1)
    """Draws of noise and time for each masked token."""
    dropout: float = Field(ge=0, lt=1)
    label_dropout: float = Field(ge=0, lt=1)
    mask_ratio_low: float = Field(ge=0, le=1)
    """Least share of masked tokens; the share is 1 - |N(0, mask_ratio_std)|, not below it."""
    mask_ratio_std: float = Field(gt=0)
    decay: Literal["matrices", "linear", "authors"]
    """What weight decay falls on: all matrices, linear maps alone (no tables), or all but the head."""
    batch_images: int = Field(ge=1)

    @model_validator(mode="after")
    def _heads_fit(self) -> "TrainMAR":
        if self.width % self.num_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must divide width ({self.width})")
        self._divides("batch_images", self.batch_images)
        return self
