"""The section `images`: which images, and how large."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from flowprior.core.section import Section
from flowprior.images.names import DIGITS_PATH, SOURCES

DIGITS_SIZE = 8
"""Pixels along a side of the digits."""


class Images(Section):
    """Which images. Evaluation never touches those of the training split."""

    source: Annotated[str, AfterValidator(SOURCES.check)]
    path: str
    """Folder of the tree or of the shards, which DVC watches; a relative one from the repository's root."""
    shards: str | None
    """webdataset: pattern of the training shards in the folder, `train-{0000..0255}.tar`; null: all."""
    held_out: str | None
    """webdataset: pattern of the held-out shards in the folder; null: by their names, or a part of all."""
    channels: Literal[1, 3] | None
    """Of an image; null: 1 where all are grey, else 3."""
    split_seed: int = Field(ge=0)
    """Decides which images are held out; the seed of a run does not."""
    max_corrupt: float = Field(ge=0, lt=1)
    """Share of the images that may turn out not to be decodable; another of the class takes the place of such a one."""

    size: int = Field(ge=1, le=4096)
    """Height and width of the images, in pixels."""
    options: dict[str, Any]
    """Of a source of your own: keyword arguments of its constructor."""

    @model_validator(mode="after")
    def _path_goes_with_source(self) -> "Images":
        if self.source == "digits" and self.path != DIGITS_PATH:
            raise ValueError(
                f"images.path {self.path!r} is not read with images.source digits; name images.source, imagefolder or "
                f"webdataset, too (a preset may do that), or leave the path at {DIGITS_PATH}"
            )
        if self.source in ("digits", "imagefolder") and (self.shards or self.held_out):
            raise ValueError(
                f"images.shards and images.held_out are patterns of shards; images.source {self.source} has none"
            )
        if self.held_out and not self.shards:
            raise ValueError(
                "images.held_out needs images.shards, the pattern of the training shards"
            )
        if self.source == "digits" and self.size != DIGITS_SIZE:
            raise ValueError(
                f"images.size: digits are 8 x 8, found {self.size}; name your own images.source and images.path"
            )
        return self
