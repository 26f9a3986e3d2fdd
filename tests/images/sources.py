"""Trees and shards of small images that can be told apart."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from hypothesis import settings
from PIL import Image

from flowprior.images.opening import open_images
from flowprior.images.sets import SPLITS, ImageSet, Split

PROPERTY = settings(deadline=None, derandomize=True, max_examples=50)
SIZE = 8
SOURCES: tuple[str, str] = ("imagefolder", "webdataset")


def grey(value: int, width: int = SIZE, height: int = SIZE) -> Image.Image:
    """An image of one grey value, which tells images apart."""
    return Image.new("RGB", (width, height), (value, value, value))


def encoded(image: Image.Image, kind: str = "PNG", **info: Any) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **info)
    return buffer.getvalue()


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    return encoded(image)


def bmp(pixels: np.ndarray) -> bytes:
    """The bytes of a BMP file: all images of a size have as many."""
    return encoded(Image.fromarray(pixels), "BMP")


def value_of(image: torch.Tensor) -> int:
    """The grey value of an image that `grey` made."""
    return round(float((image.mean() + 1) * 127.5))


def write_tree(root: Path, classes: Sequence[str], per_class: int, first: int = 0) -> Path:
    """A tree root/class/file of PNGs, each of another grey value."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            grey(first + number * per_class + i).save(root / name / f"{i:03d}.png")
    return root


def write_shards(
    root: Path, num_classes: int, per_class: int, first: int = 0, per_shard: int = 7
) -> Path:
    """The same images as webdataset shards, by webdataset's own writer; classes in turn."""
    root.mkdir(parents=True)
    order = [(i, label) for i in range(per_class) for label in range(num_classes)]
    for start in range(0, len(order), per_shard):
        with webdataset.TarWriter(str(root / f"{start // per_shard:04d}.tar")) as writer:
            for i, label in order[start : start + per_shard]:
                content = png(grey(first + label * per_class + i))
                writer.write({"__key__": f"{label}-{i:03d}", "png": content, "cls": label})
    return root


def write_source(source: str, root: Path, per_class: int = 10, first: int = 0) -> Path:
    """Three classes, grey value = first + class * per_class + i."""
    if source == "imagefolder":
        return write_tree(root, ["ant", "bee", "cat"], per_class, first)
    return write_shards(root, 3, per_class, first)


def open_both(source: str, path: Path | None, split_seed: int = 0) -> dict[Split, ImageSet]:
    """Both splits."""
    return {
        split: open_images(
            source, split, split_seed=split_seed, size=SIZE, path=str(path) if path else None
        )
        for split in SPLITS
    }


def values(images: ImageSet) -> list[int]:
    """The grey values of a split, in order."""
    return [value_of(image) for image in images.images(range(len(images)))]


def write_tar(root: Path, members: dict[str, bytes]) -> Path:
    """One shard with the given members."""
    with tarfile.open(root / "0000.tar", "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return root


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8))


def tree_with_damage(root: Path, source: str) -> Path:
    """Two classes of ten images; the fourth of the first class is not one."""
    if source == "imagefolder":
        write_tree(root, ["ant", "bee"], 10)
        (root / "ant" / "003.png").write_bytes(b"not an image")
        return root
    root.mkdir()
    members = {}
    for number in range(20):
        content = b"not an image" if number == 3 else png(grey(number))
        members[f"{number:03d}.png"] = content
        members[f"{number:03d}.cls"] = str(number // 10).encode()
    write_tar(root, members)
    return root


def ramp(width: int, height: int) -> bytes:
    """Red grows to the right, green downwards, a level a pixel."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.arange(width)
    pixels[..., 1] = np.arange(height)[:, None]
    return png(Image.fromarray(pixels))
