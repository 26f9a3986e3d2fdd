"""Image files of strangers: decoded to [-1, 1] at one size, in threads; damaged ones are replaced and counted."""

import io
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "GIF", "TIFF")
"""What PIL may take a file for: for EPS it would start Ghostscript, whatever the file is called."""
MAX_PIXELS = 2**27
"""Of an image, also on the way to its size: a few bytes can promise any number."""
MAX_IMAGE_BYTES = 2**28
SMALLEST_CROP = 0.8
"""Of a random crop: share of the image's short side."""


class EncodedImages(ABC):
    """What trees and shards share: files by row, decoded in threads; see `open_images` for damaged ones.

    Attributes:
        labels: Class of every image, int64 [n].
        num_classes: Number of classes.
        digest: Fixes which images these are.
        corrupt: Name of each image that could not be decoded so far, and why.
    """

    labels: Tensor
    num_classes: int
    digest: str

    def __init__(self, size: int, max_corrupt: float) -> None:
        self._size = size
        self._max_corrupt = max_corrupt
        self.corrupt: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def images(
        self, rows: Sequence[int] | Tensor, crops: Float[Tensor, "b 4"] | None = None
    ) -> Float[Tensor, "b 3 h w"]:
        """See `ImageSet.images`.

        Raises:
            ValueError: More images than allowed cannot be decoded.
        """
        numbers = [int(row) for row in rows]
        parts = [None] * len(numbers) if crops is None else list(crops)
        return torch.stack(list(_threads().map(self._image, numbers, parts)))

    @abstractmethod
    def _content(self, row: int) -> tuple[bytes, str]:
        """Bytes of an image, and what to call it."""

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
        name = str(row)
        try:
            content, name = self._content(row)
            return decode(content, self._size, name, crop)
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


def decode(
    content: bytes, size: int, name: str, crop: Float[Tensor, "4"] | None = None
) -> Float[Tensor, "3 h w"]:
    """Decode an image, scale its short side to `size` and crop the centre; float32 RGB in [-1, 1].

    Args:
        content: The file.
        size: Height and width of the result.
        name: For messages.
        crop: Four draws from U(0, 1): for a square of `SMALLEST_CROP` or more of the short side, its
            place down and right, and whether it is mirrored (above 1/2). None for the centre.

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
            image = opened.convert("RGB")
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
    pixels = pixels[:, ::-1] if mirrored > 0.5 else pixels
    # In numpy as far as it goes: decoding threads whose tensors had threads of their own would wait for them.
    return torch.from_numpy(np.ascontiguousarray((pixels / 127.5 - 1).transpose(2, 0, 1)))
