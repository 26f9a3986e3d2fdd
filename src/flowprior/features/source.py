"""What a source of target features is: asked once, it gives vectors piece by piece."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from flowprior.features.config import ExtractFeatures, Prior
from flowprior.features.names import SOURCES
from flowprior.images.sets import ImageSet, Split


class Source(NamedTuple):
    """Where vectors come from.

    Attributes:
        pieces: Gives the vectors of a split, float32 [n, D] a piece.
        digest: Fixes what is read.
        facts: What to record of it.
        images: That the vectors are made of, by split; empty where they are a table.
    """

    pieces: Callable[[Split], Iterator[Tensor]]
    digest: str
    facts: dict[str, str]
    images: Mapping[Split, ImageSet]


class Request(NamedTuple):
    """What a source is made from. Each source is a function of this and of `prior.options`.

    Attributes:
        prior: The section of the parameters.
        limits: Batches and caps.
        images: Both splits.
        size: Height and width of the images.
        on_digits: Whether they are the 8 x 8 digits.
        seed: Of the run.
        split_seed: Decides which rows of a table are held out.
        device: Where to compute.
    """

    prior: Prior
    limits: ExtractFeatures
    images: Mapping[Split, ImageSet]
    size: int
    on_digits: bool
    seed: int
    split_seed: int
    device: torch.device


def open_source(request: Request) -> Source:
    """The source that `prior.source` names.

    Raises:
        ValueError: What it names cannot be read.
    """
    opener = SOURCES.load(request.prior.source)
    source: Source = opener(request, **request.prior.options)
    return source
