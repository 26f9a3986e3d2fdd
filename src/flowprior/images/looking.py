"""What a source of images gives, for a person: counts, classes, sizes, modes, what was passed over, some of them."""

import io
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from flowprior.images.decoding import FORMATS, EncodedImages
from flowprior.images.folder import ImageFolder
from flowprior.images.sets import SPLITS
from flowprior.images.shards import WebShards

LOOKED_AT = 200
"""Images that are opened, spread evenly."""


class Look(NamedTuple):
    """What lies in a place.

    Attributes:
        source: Kind of the source.
        counts: Images of each split; why one is absent is in `problems`.
        classes: Images of each class, by its name, in both splits.
        channels: 1 or 3.
        sizes: Width and height of the images that were opened.
        modes: How often each mode was met among them.
        passed_over: What was not taken, how many by kind.
        problems: What went wrong, a line each.
    """

    source: str
    counts: dict[str, int]
    classes: dict[str, list[int]]
    channels: int
    sizes: list[tuple[int, int]]
    modes: dict[str, int]
    passed_over: dict[str, int]
    problems: list[str]


def open_place(path: Path, size: int) -> tuple[str, dict[str, EncodedImages], list[str]]:
    """Both splits of a folder or pattern, as shards where it has any, with what went wrong.

    Raises:
        ValueError: Not even training images can be opened.
    """
    if not path.is_dir() and not set(str(path)) & set("*?[{"):
        raise ValueError(f"{path} is no folder, and no pattern of shards")
    shards = not path.is_dir() or any(path.glob("*.tar")) or any(path.glob("*/*.tar"))
    make = WebShards if shards else ImageFolder
    found: dict[str, EncodedImages] = {}
    problems = []
    for split in SPLITS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[split] = make(path, split, 0, size, 1 - 1e-9)
        except ValueError as error:
            if split == "train":
                raise
            problems.append(str(error))
    return "webdataset" if shards else "imagefolder", found, problems


def look(path: Path, size: int = 64) -> tuple[Look, dict[str, EncodedImages]]:
    """Open what lies in a place, and some of its images.

    Args:
        path: A folder, or a pattern of shards.
        size: Height and width of images that are delivered.

    Raises:
        ValueError: Not even training images can be opened.
    """
    source, splits, problems = open_place(path, size)
    train = splits["train"]
    classes: dict[str, list[int]] = {name: [0, 0] for name in train.class_names}
    sizes, modes = [], Counter[str]()
    for index, images in enumerate(splits.values()):
        for name, count in zip(images.class_names, images.labels.bincount().tolist(), strict=False):
            classes[name][index] = count
        places = images.places
        for place in places[:: max(1, len(places) * len(splits) // LOOKED_AT)]:
            try:
                width, height, mode = _header(place.read())
            except (ValueError, OSError) as error:
                problems.append(f"{place}: {error}")
                continue
            sizes.append((width, height))
            modes[mode] += 1
    of_each = [images.passed_over for images in splits.values()]
    passed_over = Counter(of_each[0])
    if of_each[-1] != of_each[0]:  # else both splits are cut from one listing
        passed_over.update(of_each[-1])
    counts = {split: len(images) for split, images in splits.items()}
    return (
        Look(
            source, counts, classes, train.channels, sizes, dict(modes), dict(passed_over), problems
        ),
        splits,
    )


def _header(content: bytes) -> tuple[int, int, str]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            return opened.width, opened.height, str(opened.mode)
    except Exception as error:  # PIL raises whatever the damaged bytes provoke
        raise ValueError(f"cannot be opened as an image: {error}") from None
