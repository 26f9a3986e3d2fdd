"""From the name of a source of images to one split of it."""

from collections.abc import Mapping
from typing import Any

from flowprior.core.io import digest
from flowprior.images.names import SOURCES
from flowprior.images.sets import ImageSet, Split


def open_images(
    source: str,
    split: Split,
    *,
    split_seed: int,
    size: int,
    path: str | None = None,
    shards: str | None = None,
    held_out: str | None = None,
    channels: int | None = None,
    max_corrupt: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> ImageSet:
    """Open one split of an image source.

    Args:
        source: A name of `flowprior.images.names.SOURCES`, or a plugin's. What it stands for is called
            with the other arguments, `options` as keywords.
        split: `train` or `validation`.
        split_seed: Decides which images are held out; not the seed of a run.
        size: Height and width to deliver.
        path: The tree or the folder of shards; unused for digits. With folders for the splits it is taken as already
            split.
        shards: Pattern of the training shards in the folder.
        held_out: Pattern of the held-out shards in the folder.
        channels: 1 or 3; None takes 1 where `flowprior.images.decoding.LOOKED_AT` images are grey.
        max_corrupt: Share of a split that may turn out not to be decodable. The place of such an
            image is taken by the next one of its class; it is warned of and kept in `corrupt`.
        options: Of a source of one's own.

    Raises:
        ValueError: The source is unknown or empty, the path is missing or none, or the size is not what digits have.
    """
    opener = SOURCES.load(source)
    asked = {"shards": shards, "held_out": held_out, "channels": channels}
    images: Any = opener(
        split,
        path=path,
        split_seed=split_seed,
        size=size,
        max_corrupt=max_corrupt,
        **{name: value for name, value in asked.items() if value is not None},
        **(options or {}),
    )
    # One's own source may leave these out.
    if not hasattr(images, "class_names"):
        images.class_names = tuple(map(str, range(images.num_classes)))
    if not hasattr(images, "channels"):
        images.channels = int(images.images([0]).shape[1])
    found: ImageSet = images
    return found


def images_digest(train: ImageSet, held_out: ImageSet) -> str:
    """A few digits that fix which images both splits hold."""
    return digest([train.digest, held_out.digest])[:16]


def open_both_splits(arguments: Mapping[str, Any]) -> tuple[ImageSet, ImageSet]:
    """Training and held-out images; `arguments` are those of `open_images` but for the split."""
    return open_images(split="train", **arguments), open_images(split="validation", **arguments)
