"""What lies in a place: images with their classes, and what was passed over, from which a split is cut."""

import re
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import torch
from jaxtyping import Int
from torch import Tensor

from flowprior.core.io import digest
from flowprior.images.names import DIGITS_PATH
from flowprior.images.sets import Split, split_rows

PROBE_BYTES = 2**10
WHOLE_BYTES = 4 * PROBE_BYTES
"""Of a longer file a piece of the middle and one of the end are looked at, to tell it from another of its size."""
PROBING_THREADS = 16
AT_ONCE = 4096
"""Images that a thread looks at in one go."""
MAX_IMAGE_BYTES = 2**28
TRAIN = ("train", "training")
ALL = "all"
"""The one class of images that have none."""
HELD_OUT = ("val", "valid", "validation", "test", "testing")
"""What splits are called, in any case; of several that could be held out the first is."""


class Place(NamedTuple):
    """Where the bytes of an image are.

    Attributes:
        file: The file that holds them.
        length: How many they are.
        offset: Where in the file they begin; None if they are all of it.
    """

    file: Path
    length: int
    offset: int | None = None

    def __str__(self) -> str:
        return str(self.file) if self.offset is None else f"{self.file} at byte {self.offset}"

    def read(self) -> bytes:
        """All of them.

        Raises:
            ValueError: They are too many for an image.
            OSError: The file cannot be read.
        """
        if self.length > MAX_IMAGE_BYTES:
            raise ValueError(f"{self} has an image of {self.length} bytes")
        with self.file.open("rb") as file:
            file.seek(self.offset or 0)
            return file.read(MAX_IMAGE_BYTES if self.offset is None else self.length)


class Listing(NamedTuple):
    """Images in a fixed order.

    Attributes:
        names: What to call each, apart from where the folder is.
        classes: The class of each, as text.
        places: Where each is.
        passed_over: What was not taken: how many by what they are.
        order: All classes in their order, where that is known; else by name.
    """

    names: list[str]
    classes: list[str]
    places: list[Place]
    passed_over: dict[str, int]
    order: Sequence[str] | None = None


class Cut(NamedTuple):
    """One split of a listing.

    Attributes:
        places: Where each image is.
        labels: Its class, a place in `class_names`.
        class_names: All classes, in their order.
        digest: Fixes names, sizes, classes and, by pieces of each file, content.
        passed_over: Of the listing.
    """

    places: list[Place]
    labels: Int[Tensor, " n"]
    class_names: tuple[str, ...]
    digest: str
    passed_over: dict[str, int]


def cut(
    listing: Listing,
    training: Listing | None,
    base: str,
    split: Split,
    split_seed: int,
    identity: Sequence[str | int],
) -> Cut:
    """A split of what was listed.

    Args:
        listing: Of the split itself where the source comes split, else of all images.
        training: Of the training split, where the source comes split: its classes are those that there are.
        base: For messages.
        split: Which one.
        split_seed: Decides which images are held out where the source does not come split.
        identity: What else the digest fixes.

    Raises:
        ValueError: The split is empty, or has classes that the training images lack.
    """
    if listing.passed_over:
        warnings.warn(f"{base}: passed over {told(listing.passed_over)}", stacklevel=3)
    names = class_names(listing if training is None else training)
    unknown = sorted(set(listing.classes) - set(names))
    if unknown:
        shown = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(f"{base} has the classes {shown}, which the training images lack")
    number = {name: index for index, name in enumerate(names)}
    labels = torch.tensor([number[name] for name in listing.classes], dtype=torch.int64)
    held = split_rows(labels, split, split_seed) if training is None else torch.arange(len(labels))
    rows = held.tolist()
    if not rows:
        raise ValueError(f"{base}: the {split} split is empty; there are only {len(labels)} images")
    places = [listing.places[row] for row in rows]
    entries = [
        [listing.names[row], listing.classes[row], place.length, mark]
        for row, place, mark in zip(rows, places, marks(places), strict=True)
    ]
    return Cut(
        places, labels[rows], names, digest([*identity, *names, entries]), listing.passed_over
    )


def class_names(listing: Listing) -> tuple[str, ...]:
    """The classes that have an image: in the known order, or as numbers if all are, or by name."""
    found = set(listing.classes)
    if listing.order is not None:
        return tuple(name for name in listing.order if name in found)
    numbers = all(re.fullmatch(r"\d{1,18}", name) for name in found)
    return tuple(sorted(found, key=lambda name: (int(name), name) if numbers else (0, name)))


def marks(places: Sequence[Place]) -> list[str]:
    """Pieces of each image, as hexadecimal digits of a hash: another image of the same size has others."""
    slices = [places[start : start + AT_ONCE] for start in range(0, len(places), AT_ONCE)]
    with ThreadPoolExecutor(PROBING_THREADS, "probes") as threads:
        return [mark for part in threads.map(lambda s: [*map(_mark, s)], slices) for mark in part]


def _mark(place: Place) -> str:
    start = place.offset or 0
    try:
        with place.file.open("rb") as file:
            if place.length <= WHOLE_BYTES:
                file.seek(start)
                return f"{crc32(file.read(place.length)):08x}"
            file.seek(start + place.length // 2)
            middle = crc32(file.read(PROBE_BYTES))
            file.seek(start + place.length - PROBE_BYTES)
            return f"{crc32(file.read(PROBE_BYTES), middle):08x}"
    except OSError:  # it counts as damaged when it is needed
        return ""


def told(passed_over: Mapping[str, int]) -> str:
    """What was not taken, in words."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(passed_over.items()))


def split_name(name: str) -> Split | None:
    """The split that a folder's name is of."""
    lower = name.lower()
    return "train" if lower in TRAIN else "validation" if lower in HELD_OUT else None


def no_training(root: Path, folder: str) -> str:
    """What to say of a root with a folder of held-out images and none for training."""
    return (
        f"{root} has the folder {folder} and none for training: put that beside it, or name {root / folder} itself, "
        "and a part of it is held out"
    )


def existing_folder(path: str | None, source: str) -> Path:
    """The folder that a source reads.

    Raises:
        ValueError: None is named, or there is no such folder.
    """
    if path is None or Path(path).as_posix().endswith(DIGITS_PATH):
        raise ValueError(
            f"images.source {source!r} needs images.path, the place of your images: -S images.path=..."
        )
    if not Path(path).is_dir():
        raise ValueError(f"images.path {path!r} is not a directory")
    return Path(path)
