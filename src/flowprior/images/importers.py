"""Readers of data sets of other kinds: each gives the samples of every split, for `flowprior.images.importing`."""

import gzip
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy import ndarray

from flowprior.core.io import load_tensors
from flowprior.images.listing import HELD_OUT, TRAIN, split_name
from flowprior.images.sets import Split

IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
LABEL_KEYS = ("labels", "label", "y", "targets", "arr_1")

Sample = tuple[Any, int | str | None]
"""An image, as an array of bytes [h, w], [h, w, c] or as PIL has it, with its class."""


class Part(NamedTuple):
    """Samples of one split, how many there are, and what the numbers of classes stand for."""

    samples: Iterable[Sample]
    size: int
    classes: Sequence[str] | None = None


def read_idx(folder: Path) -> dict[Split, Part]:
    """Pairs of files as MNIST's, plain or as .gz.

    Raises:
        ValueError: There is no file of training images, or one is damaged or no IDX file.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder of IDX files")
    found: dict[Split, Part] = {}
    for split, words in (("train", ("train",)), ("validation", ("t10k", "test", "val"))):
        pair = [
            next(
                (
                    p
                    for p in sorted(folder.iterdir())
                    if what in p.name and p.name.startswith(words)
                ),
                None,
            )
            for what in ("images", "labels")
        ]
        if pair[0] is not None:
            images = _idx_array(pair[0])
            labels = _idx_array(pair[1]) if pair[1] is not None else None
            found[split] = _of_arrays(images, labels, str(pair[0]))  # type: ignore[index]
    if "train" not in found:
        raise ValueError(
            f"{folder} holds no train-images-idx3-ubyte, plain or as .gz, and so no training images"
        )
    return found


def _idx_array(path: Path) -> ndarray:
    opened: IO[bytes]
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as opened:  # type: ignore[assignment]
        try:
            zero, kind, rank = (int.from_bytes(opened.read(n), "big") for n in (2, 1, 1))
            shape = [int.from_bytes(opened.read(4), "big") for _ in range(rank)]
            content = opened.read()
        except (OSError, EOFError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None
    if zero or kind not in IDX_TYPES or not 1 <= rank <= 4:
        raise ValueError(f"{path} is no IDX file")
    dtype = np.dtype(IDX_TYPES[kind])
    if len(content) != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
        raise ValueError(
            f"{path} has {len(content)} bytes of values, its head says {shape} {dtype}"
        )
    return np.frombuffer(content, dtype=dtype).reshape(shape)


def read_torchvision(name: str, root: Path) -> dict[Split, Part]:
    """A data set of torchvision's, downloaded below `root/.torchvision` where it is absent.

    Raises:
        ValueError: There is none of that name, or it has no training split that can be asked for.
    """
    import torchvision.datasets

    make = getattr(torchvision.datasets, name, None)
    if make is None:
        raise ValueError(f"torchvision has no data set {name!r}")
    folder = str(root / ".torchvision")
    found: dict[Split, Part] = {}
    for split, ways in (
        ("train", ({"train": True}, {"split": "train"})),
        ("validation", ({"train": False}, {"split": "test"}, {"split": "val"})),
    ):
        for arguments in ways:
            try:
                data = make(folder, download=True, **arguments)
            except (TypeError, ValueError):  # it splits in another way
                continue
            found[split] = Part(data, len(data), getattr(data, "classes", None))  # type: ignore[index]
            break
    if "train" not in found:
        raise ValueError(f"torchvision's {name} has no training split that can be asked for")
    return found


def read_hugging_face(name: str) -> dict[Split, Part]:
    """A data set of the hub, or a folder that `datasets` saved or can load; columns are found by their types.

    Raises:
        ValueError: It has no column of images, or no training split.
    """
    import datasets

    place = Path(name).expanduser()
    if place.is_dir() and (place / "dataset_dict.json").is_file():
        loaded = datasets.load_from_disk(str(place))
    elif place.is_dir() and (place / "state.json").is_file():
        loaded = {"train": datasets.load_from_disk(str(place))}
    else:
        loaded = datasets.load_dataset(str(place) if place.exists() else name)
    found: dict[Split, Part] = {}
    order = (*TRAIN, *HELD_OUT)
    for key in sorted(filter(split_name, loaded), key=lambda key: order.index(key.lower())):
        split, data = split_name(key), loaded[key]
        if split is None or split in found:
            continue
        image = _column(data, "Image", ("image", "img"))
        label = _column(
            data, "ClassLabel", ("label", "labels", "class", "fine_label"), needed=False
        )
        if label and len(data) and data[0][label] == -1:  # a test set that keeps its labels
            continue
        names = getattr(data.features[label], "names", None) if label else None
        found[split] = Part(_rows(data, image, label), len(data), names)
    if "train" not in found:
        raise ValueError(f"{name} has the splits {', '.join(loaded)}, and none for training")
    return found


def _column(data: Any, kind: str, names: Sequence[str], needed: bool = True) -> str | None:
    """The column of a type, or else of a name."""
    of_type = [name for name, one in data.features.items() if type(one).__name__ == kind]
    called = [name for name in names if name in data.features]
    found = [name for name in called if name in of_type] or of_type or called
    if not found and needed:
        raise ValueError(f"no column of {', '.join(data.features)} holds images")
    return found[0] if found else None


def _rows(data: Any, image: str | None, label: str | None) -> Iterator[Sample]:
    for row in data:
        yield row[image], None if label is None else row[label]


def read_arrays(
    path: Path, labels: str | Path | None, value_range: tuple[float | int, float | int] | None
) -> dict[Split, Part]:
    """Images [n, h, w] or [n, h, w, c] of a file, with labels of the same or another.

    Raises:
        ValueError: The file holds no such array or several, or values are not bytes and no range is stated.
    """
    arrays: Mapping[str, ndarray]
    if path.suffix == ".npy":
        arrays = {"images": np.load(path, mmap_mode="r", allow_pickle=False)}
    elif path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in opened.files}
    elif path.suffix == ".safetensors":
        tensors = load_tensors(path)
        arrays = {
            name: (one.float() if one.dtype == torch.bfloat16 else one).numpy()
            for name, one in tensors.items()
        }
    else:
        raise ValueError(f"{path}: arrays are .npy, .npz or .safetensors")
    images = [array for array in arrays.values() if array.ndim in (3, 4)]
    if len(images) != 1:
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        raise ValueError(f"{path} must hold one array [n, h, w] or [n, h, w, c], found {shapes}")
    own = next((arrays[key] for key in LABEL_KEYS if key in arrays), None)
    if labels is not None:
        own = np.load(Path(labels).expanduser(), allow_pickle=False)
    return {"train": _of_arrays(images[0], own, str(path), value_range)}


def _of_arrays(
    images: ndarray,
    labels: ndarray | None,
    name: str,
    value_range: tuple[float | int, float | int] | None = None,
) -> Part:
    if images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,), (4,)):
        raise ValueError(
            f"{name}: images must be [n, h, w] or [n, h, w, 1, 3 or 4], found {list(images.shape)}"
        )
    if images.dtype != np.uint8 and value_range is None:
        raise ValueError(
            f"{name} holds {images.dtype}: say which value is black and which is white, for instance --range 0,1"
        )
    if labels is not None and labels.shape != (len(images),):
        raise ValueError(f"{name}: {len(images)} images, and labels {list(labels.shape)}")
    if labels is not None and labels.dtype.kind not in "biuU":
        raise ValueError(f"{name}: labels are whole numbers or names, found {labels.dtype}")

    def samples() -> Iterator[Sample]:
        for number, image in enumerate(images):
            label = None if labels is None else labels[number].item()
            yield _to_bytes(np.asarray(image), value_range), label

    return Part(samples(), len(images))


def _to_bytes(image: ndarray, value_range: tuple[float | int, float | int] | None) -> ndarray:
    if value_range is None:
        return np.ascontiguousarray(image)
    low, high = value_range
    scaled = (image.astype(np.float64) - low) / (high - low)
    if not (np.isfinite(scaled).all() and scaled.min() >= -1e-6 and scaled.max() <= 1 + 1e-6):
        raise ValueError(
            f"values reach from {image.min():g} to {image.max():g}, not {low:g} to {high:g}"
        )
    return (scaled * 255).round().clip(0, 255).astype(np.uint8)
