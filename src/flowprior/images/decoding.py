"""Image files of strangers: decoded to [-1, 1] at one size, in threads; damaged ones are replaced and counted."""

import io
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowprior.core import rng
from flowprior.images.listing import Listing, Place, cut
from flowprior.images.sets import Split

EXTENSIONS = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".ppm", ".pgm", ".gif", ".tif", ".tiff"
)  # fmt: skip
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "GIF", "TIFF")
"""What PIL may take a file for: for EPS it would start Ghostscript, whatever the file is called."""
MAX_PIXELS = 2**27
"""Of an image, also on the way to its size: a few bytes can promise any number."""
GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
"""Modes of PIL."""
LOOKED_AT = 256
"""Images whose mode decides whether all are taken for grey."""
DEEP = 2**16 - 1
"""White of 16 bits."""
SMALLEST_CROP = 0.8
"""Of a random crop: share of the image's short side."""


class EncodedImages:
    """What trees and shards share: one split, decoded in threads; see `open_images` for damaged ones.

    Attributes:
        places: Where each image is.
        labels: Class of every image, int64 [n].
        num_classes: Number of classes.
        class_names: What they are called.
        channels: 1 or 3.
        digest: Fixes which images these are.
        corrupt: Name of each image that could not be decoded so far, and why.
        passed_over: What lies there and was not taken: how many by what they are.

    Args:
        kind: Of the source; the digest fixes it.
        listing: Of the split itself where the source comes split, else of all images.
        training: Of the training split, where the source comes split; see `cut`.
        base: The place, for messages.
        split: Which one.
        split_seed: Decides what is held out where the source does not come split.
        size: Height and width to deliver.
        channels: 1 or 3; None takes 1 where the training images are grey.
        max_corrupt: Share that may turn out not to be decodable.

    Raises:
        ValueError: The split is empty, or has classes that the training images lack.
    """

    def __init__(
        self,
        kind: str,
        listing: Listing,
        training: Listing | None,
        base: Path,
        split: Split,
        split_seed: int,
        size: int,
        channels: int | None,
        max_corrupt: float,
    ) -> None:
        channels = channels or channels_of((training or listing).places)
        chosen = cut(listing, training, str(base), split, split_seed, (kind, size, channels))
        self.places = chosen.places
        self.labels = chosen.labels
        self.class_names = chosen.class_names
        self.num_classes = len(chosen.class_names)
        self.channels = channels
        self.digest = chosen.digest
        self.passed_over = chosen.passed_over
        self._size = size
        self._max_corrupt = max_corrupt
        self.corrupt: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def images(
        self, rows: Sequence[int] | Tensor, crops: Float[Tensor, "b 4"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """See `ImageSet.images`.

        Raises:
            ValueError: More images than allowed cannot be decoded.
        """
        numbers = [int(row) for row in rows]
        parts = [None] * len(numbers) if crops is None else list(crops)
        return torch.stack(list(_threads().map(self._image, numbers, parts)))

    def _image(self, row: int, crop: Tensor | None) -> Tensor:
        found = self._decoded(row, crop)
        if found is not None:
            return found
        # The next of its class, so that the label stays right and the choice depends on the row alone.
        same = (self.labels == self.labels[row]).nonzero()[:, 0]
        at = int(torch.searchsorted(same, row))
        for other in torch.cat([same[at + 1 :], same[:at]]).tolist():
            found = self._decoded(other, crop)
            if found is not None:
                return found
        raise ValueError(f"no image of class {int(self.labels[row])} can be decoded")

    def _decoded(self, row: int, crop: Tensor | None) -> Tensor | None:
        name = str(self.places[row])
        try:
            return decode(self.places[row].read(), self._size, name, crop, self.channels)
        except (ValueError, OSError) as error:
            known = name in self.corrupt
            self.corrupt[name] = str(error)
            if len(self.corrupt) > self._max_corrupt * len(self):
                raise ValueError(
                    f"{error}. {len(self.corrupt)} of {len(self)} images are damaged, more than the share "
                    f"images.max_corrupt {self._max_corrupt:g}; mend or remove them, or raise it"
                ) from None
            if not known:
                warnings.warn(f"{error}; another image of its class takes its place", stacklevel=2)
            return None


@cache
def _threads() -> ThreadPoolExecutor:
    """As many as this rank's share of the cores."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // ranks), "images")


def channels_of(places: Sequence[Place]) -> int:
    """1 if `LOOKED_AT` images, drawn at random, are grey, each of them; else 3."""
    rows = torch.randperm(len(places), generator=rng.generator(0, "channels"))[:LOOKED_AT]
    found = [mode for mode in _threads().map(_mode, [places[row] for row in rows]) if mode]
    return 1 if found and all(mode in GREY for mode in found) else 3


def _mode(place: Place) -> str | None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(place.read()), formats=FORMATS) as opened:
            return str(opened.mode)
    except Exception:  # whatever damaged bytes provoke; they are counted when they are needed
        return None


def decode(
    content: bytes,
    size: int,
    name: str,
    crop: Float[Tensor, "4"] | None = None,
    channels: int = 3,
) -> Float[Tensor, "c h w"]:
    """Decode an image, scale its short side to `size` and crop the centre; float32 in [-1, 1].

    It is turned as its EXIF data say; what is transparent lies over white; 16 bits a channel become 8.

    Args:
        content: The file.
        size: Height and width of the result.
        name: For messages.
        crop: Four draws from U(0, 1): for a square of `SMALLEST_CROP` or more of the short side, its
            place down and right, and whether it is mirrored (above 1/2). None for the centre.
        channels: 1 for grey, 3 for RGB.

    Raises:
        ValueError: The bytes are not an image that can be read.
    """
    from PIL import Image

    zoom, down, right, mirrored = (0.0,) * 4 if crop is None else crop.tolist()
    side = int(size + zoom * (int(size / SMALLEST_CROP) + 1 - size))
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            width, height = opened.size
            if max(width * height, side * side * max(opened.size) // min(opened.size)) > MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels are too many, or too long a strip")
            image = plain(opened, channels)
    except Exception as error:  # PIL raises whatever the damaged bytes provoke
        raise ValueError(f"{name} cannot be decoded as an image: {error}") from None
    # ADM's recipe: halve with a box filter while twice too large, then bicubic, then crop.
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize(
        (max(side, round(image.width * scale)), max(side, round(image.height * scale))),
        Image.Resampling.BICUBIC,
    )
    if crop is None:
        left, top = (image.width - size) // 2, (image.height - size) // 2
    else:
        left = int(right * (image.width - size + 1))
        top = int(down * (image.height - size + 1))
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.float32)
    pixels = pixels.reshape(size, size, channels)
    pixels = pixels[:, ::-1] if mirrored > 0.5 else pixels
    # In numpy as far as it goes: decoding threads whose tensors had threads of their own would wait for them.
    return torch.from_numpy(np.ascontiguousarray((pixels / 127.5 - 1).transpose(2, 0, 1)))


def plain(opened: Any, channels: int | None = None) -> Any:
    """An image of PIL's as bytes, grey or RGB, upright, without transparency.

    Args:
        opened: As PIL opened it.
        channels: 1 or 3; None keeps grey grey.

    Raises:
        ValueError: Its pixels are fractions, or integers of more than 16 bits.
    """
    from PIL import Image, ImageOps

    grey = opened.mode in GREY if channels is None else channels == 1
    with suppress(Exception):  # of damaged EXIF data, in an image that is whole
        opened = ImageOps.exif_transpose(opened)
    if opened.mode.startswith("I"):
        levels = np.asarray(opened)
        if levels.min() < 0 or levels.max() > DEEP:
            raise ValueError(
                f"its values reach from {levels.min()} to {levels.max()}, not 0 to {DEEP}"
            )
        opened = Image.fromarray((levels.astype(np.uint32) * 255 // DEEP).astype(np.uint8))
    if opened.mode == "F":
        raise ValueError("its pixels are fractions of no stated range; images are integers")
    if opened.mode in TRANSPARENT or "transparency" in opened.info:
        opened = opened.convert("RGBA")
        white = Image.new("RGBA", opened.size, (255, 255, 255, 255))
        opened = Image.alpha_composite(white, opened)
    return opened.convert("L" if grey else "RGB")
