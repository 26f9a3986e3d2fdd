"""What a set of images is: one split of a source, which never moves with a run's seed.

Images are float32 [c, h, w] in [-1, 1]. The sources stand beside this module, their names in `names.py`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowprior.core import rng

Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")
VALIDATION_FRACTION = 0.2


@runtime_checkable
class ImageSet(Protocol):
    """One split of a source.

    Attributes:
        labels: Class of every image, int64 [n].
        num_classes: Number of classes.
        class_names: What they are called, in the order of their numbers.
        channels: 1 or 3.
        digest: Fixes which images these are.
        corrupt: Name of each image that could not be decoded so far, and why; see `open_images`.
    """

    labels: Tensor
    num_classes: int
    class_names: tuple[str, ...]
    channels: int
    digest: str
    corrupt: dict[str, str]

    def __len__(self) -> int: ...

    def images(
        self, rows: Sequence[int] | Tensor, crops: Float[Tensor, "b 4"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Images by index, float32 in [-1, 1]; with `crops` a part of each, see `decode`."""
        ...


class WrongImagesError(ValueError):
    """The images are not those that an input was made from; the message says how to go on."""


def check_images(images: ImageSet, expected: str | None, artifact: Path, stage: str) -> None:
    """Stop where an artifact was made from other images than these, which DVC sees and a stage run by hand does not.

    Args:
        images: As opened now.
        expected: Their digest by the artifact's manifest; None where it was not made from images.
        artifact: The input.
        stage: What makes it.

    Raises:
        WrongImagesError: The digests differ.
    """
    if expected is not None and images.digest != expected:
        raise WrongImagesError(
            f"{artifact} was made from other images than images.path holds now (the digests of the listings "
            f"are {expected[:12]} and {images.digest[:12]}). If they were meant to change, make it again with "
            f"`dvc repro --force --downstream {stage}`; else restore the images"
        )


def classes_of(images: ImageSet) -> dict[str, Any]:
    """Number and names of the classes, for a manifest."""
    return {"num_classes": images.num_classes, "class_names": list(images.class_names)}


def batches(n: int, size: int) -> Iterator[range]:
    """Consecutive index ranges that cover 0 .. n-1, each of at most `size`."""
    for start in range(0, n, size):
        yield range(start, min(start + size, n))


def split_rows(labels: Int[Tensor, " n"], split: Split, split_seed: int) -> Int[Tensor, " m"]:
    """Rows of a split, ascending: a fifth of every class, at random, is held out."""
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().squeeze(-1)
        order = torch.randperm(len(rows), generator=rng.generator(split_seed, "split", label))
        held_out[rows[order[: round(len(rows) * VALIDATION_FRACTION)]]] = True
    return (held_out if split == "validation" else ~held_out).nonzero().squeeze(-1)
