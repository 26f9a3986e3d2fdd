"""The section `align`: what pulls the latents, and how hard."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from flowprior.alignment.names import OBJECTIVES
from flowprior.core.section import Section


class Pull(Section):
    """What pulls the latents."""

    objective: Annotated[str, AfterValidator(OBJECTIVES.check)]
    """What pulls them."""
    num_draws: int = Field(ge=1, le=1024)
    """Draws of noise and time for each latent, of the objectives that ask a flow."""
    t_max: float = Field(gt=0, lt=1)
    """likelihood: the largest time, where the weight t / (1 - t) ends; dmd: times lie in (1 - t_max, t_max)."""
    fake_updates: int = Field(ge=1, le=100)
    """dmd: updates of the flow of the latents for one of the autoencoder."""
    fake_lr: float = Field(gt=0, le=1)
    """dmd: its learning rate."""
    options: dict[str, Any]
    """Of an objective of your own: keyword arguments of its `build`."""

    @model_validator(mode="after")
    def _times_fit(self) -> "Pull":
        if self.objective == "dmd" and self.t_max <= 0.5:
            raise ValueError(
                f"align.t_max must be above 0.5 with align.objective dmd, found {self.t_max}: "
                "its times lie between 1 - t_max and t_max"
            )
        return self


class Align(Pull):
    """What pulls the latents, and how hard."""

    weight: float = Field(ge=0)
    """Factor on the objective, a mean over vectors and dims."""
