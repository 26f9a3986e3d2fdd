"""Images with labels, cut into a training and a validation split that never moves with the run's seed.

Three sources behind one face: scikit-learn's digits, a tree `root/class/file`, and webdataset
shards. Images are float32 [c, h, w] in [-1, 1].
"""

import io
import json
import os
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowprior.core import rng
from flowprior.core.io import digest
from flowprior.core.tars import tar_members

Source = Literal["digits", "imagefolder", "webdataset"]
Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")
VALIDATION_FRACTION = 0.2
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "GIF", "TIFF")
"""What PIL may take a file for: for EPS it would start Ghostscript, whatever the file is called."""
MAX_PIXELS = 2**27
"""Of an image, also on the way to its size: a few bytes can promise any number."""
MAX_IMAGE_BYTES = 2**28
SMALLEST_CROP = 0.8
"""Of a random crop: share of the image's short side."""


@runtime_checkable
class ImageSet(Protocol):
    """One split of a source.

    Attributes:
        labels: Class of every image, int64 [n].
        num_classes: Number of classes.
        digest: Fixes which images these are.
        corrupt: Name of each image that could not be decoded so far, and why; see `open_images`.
    """

    labels: Tensor
    num_classes: int
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
    """Stop where an artifact was made from other images than these: DVC does not look into trees of images.

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


def open_images(
    source: Source,
    split: Split,
    *,
    split_seed: int,
    size: int,
    path: str | None = None,
    max_corrupt: float = 0.0,
) -> ImageSet:
    """Open one split of an image source.

    Args:
        source: `digits`, `imagefolder` or `webdataset`.
        split: `train` or `validation`.
        split_seed: Decides which images are held out; not the seed of a run.
        size: Height and width to deliver.
        path: The tree or the folder of shards; unused for digits. A tree or a folder with
            subfolders `train` and `val` (or `validation`) is taken as already split.
        max_corrupt: Share of a split that may turn out not to be decodable. The place of such an
            image is taken by the next one of its class; it is warned of and kept in `corrupt`.

    Raises:
        ValueError: The source is unknown or empty, the path is missing, the size is not what digits
            have.
    """
    if source == "digits":
        if size != 8:
            raise ValueError(f"digits are 8 x 8, found presets' image_size {size}")
        return Digits(split, split_seed)
    if source not in ("imagefolder", "webdataset"):
        raise ValueError(f"unknown images.source {source!r}; use digits, imagefolder or webdataset")
    if path is None:
        raise ValueError(f"images.source {source!r} needs images.path")
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"images.path {path!r} is not a directory")
    if source == "imagefolder":
        return ImageFolder(root, split, split_seed, size, max_corrupt)
    return WebShards(root, split, split_seed, size, max_corrupt)


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


class Digits:
    """One split of scikit-learn's 1 797 scans of handwritten digits, [1, 8, 8]."""

    num_classes = 10

    def __init__(self, split: Split, split_seed: int) -> None:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        everything = torch.from_numpy(np.asarray(labels, dtype=np.int64))
        rows = split_rows(everything, split, split_seed)
        self._pixels = torch.from_numpy(pixels.astype(np.float32))[rows].view(-1, 1, 8, 8) / 8 - 1
        self.labels = everything[rows]
        self.digest = digest(["digits", rows.tolist()])
        self.corrupt: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def images(
        self, rows: Sequence[int] | Tensor, crops: Float[Tensor, "b 4"] | None = None
    ) -> Float[Tensor, "b 1 8 8"]:
        if crops is not None:
            raise ValueError("digits fill their 8 x 8 pixels; they are not cropped")
        return self._pixels[torch.as_tensor(rows)]


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


class ImageFolder(EncodedImages):
    """One split of a tree `root/class/file`; classes are numbered in the order of their names."""

    def __init__(
        self, root: Path, split: Split, split_seed: int, size: int, max_corrupt: float = 0.0
    ) -> None:
        super().__init__(size, max_corrupt)
        folder = _presplit(root, split)
        base = folder or root
        sizes = _image_files(base)
        listing = sorted(sizes)
        if not listing:
            raise ValueError(
                f"{base} holds no images; expected {base}/<class>/<file> with one of {' '.join(EXTENSIONS)}"
            )
        numbering = _image_files(root / "train") if folder and split != "train" else sizes
        classes = sorted({name.split("/")[0] for name in numbering})
        unknown = sorted({name.split("/")[0] for name in listing} - set(classes))
        if unknown:
            raise ValueError(f"{base} has the classes {unknown}, which {root / 'train'} lacks")
        number = {name: index for index, name in enumerate(classes)}
        labels = torch.tensor([number[name.split("/")[0]] for name in listing])
        rows = torch.arange(len(labels)) if folder else split_rows(labels, split, split_seed)
        if not len(rows):
            raise ValueError(
                f"{base}: the {split} split is empty; there are only {len(labels)} images"
            )
        self._base = base
        self._names = [listing[row] for row in rows.tolist()]
        self.labels = labels[rows]
        self.num_classes = len(classes)
        self.digest = digest(["imagefolder", size, [[name, sizes[name]] for name in self._names]])

    def _content(self, row: int) -> tuple[bytes, str]:
        path = self._base / self._names[row]
        return path.read_bytes(), str(path)


class WebShards(EncodedImages):
    """One split of webdataset shards with an image and a class (`.cls`, an integer) in each sample.

    The shards are indexed once, members are then read by offset; nothing in them is unpickled.
    """

    def __init__(
        self, root: Path, split: Split, split_seed: int, size: int, max_corrupt: float = 0.0
    ) -> None:
        super().__init__(size, max_corrupt)
        folder = _presplit(root, split)
        base = folder or root
        self._samples: list[tuple[Path, int, int]] = []
        labels = []
        names = []
        shards = sorted(base.glob("*.tar"))
        if not shards:
            raise ValueError(f"{base} holds no .tar shards")
        for shard in shards:
            for key, label, offset, length in _index_shard(shard):
                self._samples.append((shard, offset, length))
                labels.append(label)
                names.append(f"{shard.name}/{key}")
        everything = torch.tensor(labels, dtype=torch.int64)
        rows = torch.arange(len(labels)) if folder else split_rows(everything, split, split_seed)
        if not len(rows):
            raise ValueError(
                f"{base}: the {split} split is empty; there are only {len(labels)} images"
            )
        self._samples = [self._samples[row] for row in rows.tolist()]
        self.labels = everything[rows]
        own = 1 + int(everything.max())
        self.num_classes = _num_classes(root / "train") if folder and split != "train" else own
        if int(everything.max()) >= self.num_classes:
            raise ValueError(
                f"{base} has the class {int(everything.max())}, {root / 'train'} none above {self.num_classes - 1}"
            )
        files = [[names[row], self._samples[i][2]] for i, row in enumerate(rows.tolist())]
        self.digest = digest(["webdataset", size, files])

    def _content(self, row: int) -> tuple[bytes, str]:
        shard, offset, length = self._samples[row]
        if length > MAX_IMAGE_BYTES:
            raise ValueError(f"{shard} at byte {offset} has an image of {length} bytes")
        with shard.open("rb") as file:
            file.seek(offset)
            return file.read(length), f"{shard} at byte {offset}"


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


def _presplit(root: Path, split: Split) -> Path | None:
    """The folder of a split in a source that is split already; None where it is not."""
    names = {"train": ("train",), "validation": ("val", "validation")}
    folders = {
        key: next((root / name for name in names[key] if (root / name).is_dir()), None)
        for key in SPLITS
    }
    if any(folders.values()) and not all(folders.values()):
        raise ValueError(f"{root} has one of the folders train and val, but not the other")
    return folders[split]


def _image_files(root: Path) -> dict[str, int]:
    """Bytes of each image below a folder of the root, by its path there; one walk, since there may be a million."""
    found = {}
    waiting = [""]
    while waiting:
        above = waiting.pop()
        with os.scandir(root / above) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting.append(f"{above}{entry.name}/")
                elif above and entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
                    found[above + entry.name] = entry.stat().st_size
    return found


def _num_classes(folder: Path) -> int:
    shards = sorted(folder.glob("*.tar"))
    return 1 + max(
        (label for shard in shards for _, label, _, _ in _index_shard(shard)), default=-1
    )


def _index_shard(shard: Path) -> Iterator[tuple[str, int, int, int]]:
    """(key, label, offset, length of the image) of every sample of a shard, in order."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    for info in tar_members(shard):
        if info.isreg():
            folder, slash, name = info.name.rpartition("/")
            key, _, extension = name.partition(".")
            key = folder + slash + key
            samples.setdefault(key, {})["." + extension.lower()] = (info.offset_data, info.size)
    with shard.open("rb") as file:
        for key, members in samples.items():
            image = next((members[e] for e in EXTENSIONS if e in members), None)
            if image is None or ".cls" not in members:
                raise ValueError(f"{shard}: sample {key!r} lacks an image or a .cls member")
            offset, length = members[".cls"]
            file.seek(offset)
            text = file.read(min(length, 32)).decode("ascii", "replace").strip()
            if not re.fullmatch(r"\d{1,6}", text):
                raise ValueError(
                    f"{shard}: sample {key!r} has the class {json.dumps(text)}, not a number "
                    "below 1 000 000"
                )
            yield key, int(text), *image
