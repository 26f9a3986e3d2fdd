"""The sections `prior` and `extract_features`: which features the latents are pulled towards."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from flowprior.core.section import Section
from flowprior.encoders.names import ENCODERS
from flowprior.features.names import SOURCES


class Prior(Section):
    """Which features the latents are pulled towards."""

    source: Annotated[str, AfterValidator(SOURCES.check)]
    path: str | None
    """What is on this machine: a model's folder, a codebook's checkpoint (discrete), or .npy, .safetensors (file)."""
    model: str | None
    """What timm (semantic, shuffled) or the hub (low_level, textual) calls a model; null takes the paper's."""
    revision: str | None
    """Of a model of the hub: a commit, tag or branch."""
    encoder: Annotated[str, AfterValidator(ENCODERS.check)]
    """semantic, shuffled: what turns images into patch features."""
    options: dict[str, Any]
    """Of a source of your own: keyword arguments of its constructor."""

    @model_validator(mode="after")
    def _path_goes_with_source(self) -> "Prior":
        if self.source == "file" and self.path is None:
            raise ValueError(
                "prior.path must name a .npy or .safetensors with prior.source file, found null"
            )
        if self.source == "gaussian" and self.path is not None:
            raise ValueError("prior.path has no effect with prior.source gaussian; set it to null")
        if self.source in ("gaussian", "discrete", "file") and self.model is not None:
            raise ValueError(
                f"prior.model has no effect with prior.source {self.source}; set it to null"
            )
        if self.path is not None and self.model is not None:
            raise ValueError(
                "prior.path and prior.model both name a model; set one of them to null"
            )
        if self.revision is not None and (
            self.path is not None or self.source in ("gaussian", "discrete", "file")
        ):
            raise ValueError("prior.revision is of a model of the hub; set it to null")
        return self


class ExtractFeatures(Section):
    """Batches and caps of the feature extraction."""

    batch_images: int = Field(ge=1)
    max_vectors: int = Field(ge=100)
    """At most so many training vectors, evenly over the images, and a tenth held out; gaussian draws as many."""
    max_images: int | None = Field(ge=1)
    """At most so many training images are looked at, evenly over the classes, and a tenth held out; null: all."""
