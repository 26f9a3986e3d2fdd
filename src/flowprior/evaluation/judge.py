"""What a judge is: it compares images with the real ones, in the features of a network that it owns."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from flowprior.evaluation.config import Evaluation
from flowprior.evaluation.inception import DTYPE
from flowprior.evaluation.names import JUDGES
from flowprior.images.pixels import to_uint8
from flowprior.images.sets import ImageSet, batches

Facts = dict[str, str | int | None]


@runtime_checkable
class Judge(Protocol):
    """Compares images with the real ones.

    Attributes:
        facts: What stands beside every figure.
    """

    facts: Facts

    def judge(
        self, pieces: Iterable[Tensor], labels: Tensor | None = None
    ) -> dict[str, float | None]:
        """Figures of images [b, c, h, w] in bytes; all with the labels they were drawn for, else the distance alone."""
        ...


class Material(NamedTuple):
    """What judges are built from; each takes what it needs.

    Attributes:
        train: A judge must not have seen images that are held out from these.
        held_out: The real images.
        size: Height and width of the images.
        batch: Images at once.
        evaluation: The section of the parameters.
        reference: Real images other than the held-out ones: a folder, or ADM's `.npz`; None for those.
        cache: Folder for features of real images.
        device: Where to compute.
    """

    train: ImageSet
    held_out: ImageSet
    size: int
    batch: int
    evaluation: Evaluation
    reference: str | None
    cache: Path
    device: torch.device


def open_judge(material: Material) -> Judge:
    """The judge that `evaluation.judge` names: a class with a classmethod `build(material)`.

    Raises:
        ValueError: It cannot be opened, or has seen images that are held out.
    """
    judge: Judge = JUDGES.load(material.evaluation.judge).build(material)
    return judge


def judge_facts(
    extractor: str | None = None,
    sha256: str | None = None,
    resize: str | None = None,
    num_real: int | None = None,
    real_moments: str | None = None,
) -> Facts:
    """What stands beside every figure: network, sizes, number of real images."""
    return {
        "extractor": extractor,
        "extractor_sha256": sha256,
        "extractor_resize": resize,
        "extractor_dtype": extractor and DTYPE,
        "statistics_dtype": extractor and "float64",
        "num_real": num_real,
        "real_moments": real_moments,
    }


class Unjudged:
    """No network: nothing is compared."""

    @classmethod
    def build(cls, material: Material) -> "Unjudged":
        """Build the judge; it needs none of the material."""
        return cls()

    def __init__(self) -> None:
        self.facts = judge_facts()

    def judge(
        self, pieces: Iterable[Tensor], labels: Tensor | None = None
    ) -> dict[str, float | None]:
        for _ in pieces:  # whoever makes them as they are asked for still wants them made
            pass
        return {}


def images_in_bytes(images: ImageSet, batch: int) -> Iterator[Tensor]:
    """All images of a set in bytes, [b, c, h, w] a piece."""
    for piece in batches(len(images), batch):
        yield to_uint8(images.images(piece))
