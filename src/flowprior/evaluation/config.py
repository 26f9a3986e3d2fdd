"""The section `evaluation`: what judges images, and against which."""

from typing import Annotated

from pydantic import AfterValidator, model_validator

from flowprior.core.section import Section
from flowprior.evaluation.names import JUDGES


class Evaluation(Section):
    """What judges samples and reconstructions, and against which images."""

    judge: Annotated[str, AfterValidator(JUDGES.check)]
    """Whose features a Fréchet distance is taken on."""
    weights: str | None
    """File of torch-fidelity's Inception weights; null takes those in torch's hub folder, or downloads them."""
    reference: str | None
    """Real images for the samples: a folder, or ADM's .npz; null takes the held-out images."""

    @model_validator(mode="after")
    def _nothing_is_without_effect(self) -> "Evaluation":
        for name, value in (("weights", self.weights), ("reference", self.reference)):
            if self.judge == "none" and value is not None:
                raise ValueError(
                    f"evaluation.{name} has no effect with evaluation.judge none; set it to null"
                )
        return self
