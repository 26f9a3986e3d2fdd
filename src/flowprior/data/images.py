"""Images with labels, cut into a training and a validation split that never moves with the run's seed.

Three sources behind one face: scikit-learn's digits, a tree `root/class/file`, and webdataset
shards. Images are float32 [c, h, w] in [-1, 1].
"""

import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowprior import rng
from flowprior.io import digest

Source = Literal["digits", "imagefolder", "webdataset"]
Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")
VALIDATION_FRACTION = 0.2
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm")


@runtime_checkable
class ImageSet(Protocol):
    """One split of a source.

    Attributes:
        labels: Class of every image, int64 [n].
        num_classes: Number of classes.
        digest: Fixes which images these are.
    """

    labels: Tensor
    num_classes: int
    digest: str

    def __len__(self) -> int: ...

    def images(self, rows: Sequence[int] | Tensor) -> Float[Tensor, "b c h w"]:
        """Images by index, float32 in [-1, 1]."""
        ...


def open_images(
    source: Source, split: Split, *, split_seed: int, size: int, path: str | None = None
) -> ImageSet:
    """Open one split of an image source.

    Args:
        source: `digits`, `imagefolder` or `webdataset`.
        split: `train` or `validation`.
        split_seed: Decides which images are held out; not the seed of a run.
        size: Height and width to deliver.
        path: The tree or the folder of shards; unused for digits. A tree or a folder with
            subfolders `train` and `val` (or `validation`) is taken as already split.

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
        return ImageFolder(root, split, split_seed, size)
    return WebShards(root, split, split_seed, size)


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

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, rows: Sequence[int] | Tensor) -> Float[Tensor, "b 1 8 8"]:
        return self._pixels[torch.as_tensor(rows)]


class ImageFolder:
    """One split of a tree `root/class/file`; classes are numbered in the order of their names."""

    def __init__(self, root: Path, split: Split, split_seed: int, size: int) -> None:
        folder = _presplit(root, split)
        base = folder or root
        self._size = size
        listing = sorted(path.relative_to(base).as_posix() for path in _image_files(base))
        if not listing:
            raise ValueError(
                f"{base} holds no images; expected {base}/<class>/<file> with one of {' '.join(EXTENSIONS)}"
            )
        classes = _classes(root / "train" if folder else root)
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
        self._paths = [base / listing[row] for row in rows.tolist()]
        self.labels = labels[rows]
        self.num_classes = len(classes)
        files = [[listing[row], (base / listing[row]).stat().st_size] for row in rows.tolist()]
        self.digest = digest(["imagefolder", size, files])

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, rows: Sequence[int] | Tensor) -> Float[Tensor, "b 3 h w"]:
        paths = [self._paths[int(row)] for row in rows]
        return torch.stack([decode(path.read_bytes(), self._size, str(path)) for path in paths])


class WebShards:
    """One split of webdataset shards with an image and a class (`.cls`, an integer) in each sample.

    The shards are indexed once, members are then read by offset; nothing in them is unpickled.
    """

    def __init__(self, root: Path, split: Split, split_seed: int, size: int) -> None:
        folder = _presplit(root, split)
        base = folder or root
        self._size = size
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

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, rows: Sequence[int] | Tensor) -> Float[Tensor, "b 3 h w"]:
        out = []
        for row in rows:
            shard, offset, length = self._samples[int(row)]
            with shard.open("rb") as file:
                file.seek(offset)
                out.append(decode(file.read(length), self._size, f"{shard} at byte {offset}"))
        return torch.stack(out)


def decode(content: bytes, size: int, name: str) -> Float[Tensor, "3 h w"]:
    """Decode an image, scale its short side to `size` and crop the centre; float32 RGB in [-1, 1].

    Raises:
        ValueError: The bytes are not an image that can be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as opened:
            image = opened.convert("RGB")
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:
        raise ValueError(f"{name} cannot be decoded as an image: {error}") from None
    # ADM's recipe: halve with a box filter while twice too large, then bicubic, then crop.
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize(
        (max(size, round(image.width * scale)), max(size, round(image.height * scale))),
        Image.Resampling.BICUBIC,
    )
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1).contiguous()


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


def _classes(root: Path) -> list[str]:
    """Names of the folders with images, sorted; their order numbers them, the same in both splits."""
    return sorted({path.relative_to(root).parts[0] for path in _image_files(root)})


def _image_files(root: Path) -> Iterator[Path]:
    for path in root.glob("*/**/*"):
        if path.suffix.lower() in EXTENSIONS and path.is_file():
            yield path


def _num_classes(folder: Path) -> int:
    shards = sorted(folder.glob("*.tar"))
    return 1 + max(
        (label for shard in shards for _, label, _, _ in _index_shard(shard)), default=-1
    )


def _index_shard(shard: Path) -> Iterator[tuple[str, int, int, int]]:
    """(key, label, offset, length of the image) of every sample of a shard, in order."""
    import tarfile

    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                if info.isreg():
                    folder, slash, name = info.name.rpartition("/")
                    key, _, extension = name.partition(".")
                    key = folder + slash + key
                    samples.setdefault(key, {})["." + extension.lower()] = info
            for key, members in samples.items():
                image = next((members[e] for e in EXTENSIONS if e in members), None)
                if image is None or ".cls" not in members:
                    raise ValueError(f"{shard}: sample {key!r} lacks an image or a .cls member")
                member = tar.extractfile(members[".cls"])
                text = member.read(32).decode("ascii", "replace").strip() if member else ""
                if not re.fullmatch(r"\d{1,9}", text):
                    raise ValueError(
                        f"{shard}: sample {key!r} has the class {json.dumps(text)}, not a number"
                    )
                yield key, int(text), image.offset_data, image.size
    except tarfile.TarError as error:
        raise ValueError(f"{shard} is not an uncompressed tar: {error}") from None
