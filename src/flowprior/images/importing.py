"""Data sets of other kinds become webdataset shards, once: IDX files, torchvision's, Hugging Face's, arrays."""

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numpy import ndarray

from flowprior.core.artifacts import atomic_dir, new_folder
from flowprior.core.extras import missing_extra
from flowprior.core.io import write_json
from flowprior.core.progress import Progress
from flowprior.images.decoding import plain
from flowprior.images.importers import (
    Part,
    read_arrays,
    read_hugging_face,
    read_idx,
    read_torchvision,
)
from flowprior.images.sets import Split
from flowprior.images.shards import CLASSES_FILE

KINDS = ("idx", "torchvision", "hf", "array")
PER_SHARD = 10_000


class Imported(NamedTuple):
    """What was written.

    Attributes:
        counts: Images of each split; where there is but one split, a part of it is held out later.
        classes: Names of the classes, where they are known.
    """

    counts: dict[Split, int]
    classes: list[str] | None


def import_images(
    source: str,
    out: str | Path,
    *,
    classes: Sequence[str] | None = None,
    labels: str | Path | None = None,
    value_range: tuple[float | int, float | int] | None = None,
    progress: bool | None = None,
) -> Imported:
    """Write a data set as webdataset shards, `train-000000.tar` and so on, with a PNG and a class in each sample.

    Args:
        source: `idx:DIR` (files as of MNIST, plain or .gz), `torchvision:NAME` (downloaded where it is absent),
            `hf:NAME` or `hf:FOLDER` (by the package datasets), or `array:FILE` (.npy, .npz or .safetensors with images
            [n, h, w] or [n, h, w, c], and labels beside them or in a file of their own).
        out: The folder to write; must not exist, or be empty.
        classes: Names of the classes in the order of their numbers, where the source does not know them.
        labels: array: a .npy with the class of each image.
        value_range: array: what is black and what is white where values are fractions.
        progress: Whether to show how far it is on standard error; by default on a terminal.

    Raises:
        ValueError: The source is of no known kind or holds no images, `out` holds something, or labels have no names.
        OSError: A file cannot be read.
        ModuleNotFoundError: A package is missing; says which extra brings it.
    """
    kind, _, place = source.partition(":")
    if kind not in KINDS or not place:
        raise ValueError(
            f"{source!r} is no source to import; name idx:DIR, torchvision:NAME, hf:NAME or array:FILE"
        )
    out = new_folder(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    read: Mapping[str, Callable[[], dict[Split, Part]]] = {
        "idx": lambda: read_idx(Path(place).expanduser()),
        "torchvision": lambda: read_torchvision(place, out.parent),
        "hf": lambda: read_hugging_face(place),
        "array": lambda: read_arrays(Path(place).expanduser(), labels, value_range),
    }
    try:
        parts = read[kind]()
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(missing_extra(error) or str(error), name=error.name) from None
    known = next((part.classes for part in parts.values() if part.classes), None)
    names = list(classes or known or []) or None
    if names is not None and len(set(names)) != len(names):
        raise ValueError("two classes have the same name")
    with atomic_dir(out) as folder:
        for split, part in parts.items():
            _write(folder, split, part, names, progress)
        if names is not None:
            write_json(folder / CLASSES_FILE, names)
    return Imported({split: part.size for split, part in parts.items()}, names)


def _write(
    folder: Path, split: Split, part: Part, names: list[str] | None, progress: bool | None
) -> None:
    bar = Progress(f"{split} images", part.size, progress)
    tar: tarfile.TarFile | None = None
    number = -1
    for number, (image, label) in enumerate(part.samples):
        if number % PER_SHARD == 0:
            if tar is not None:
                tar.close()
            path = folder / f"{split}-{number // PER_SHARD:06d}.tar"
            tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        assert tar is not None
        _add(tar, f"{number:08d}.png", _png(image))
        if label is not None:
            if names is not None and isinstance(label, int) and not 0 <= label < len(names):
                raise ValueError(
                    f"image {number} has the class {label}; there are {len(names)} names"
                )
            _add(tar, f"{number:08d}.cls", str(label).encode())
        bar.at(number + 1)
    bar.end()
    if tar is None:
        raise ValueError(f"there are no {split} images")
    tar.close()
    if number + 1 != part.size:
        raise ValueError(f"{number + 1} {split} images instead of {part.size}")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """A member without time or owner: equal images give equal bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _png(image: Any) -> bytes:
    from PIL import Image

    if isinstance(image, ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    buffer = io.BytesIO()
    plain(image).save(buffer, "PNG")
    return buffer.getvalue()
