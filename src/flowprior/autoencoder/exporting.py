"""Latents in the files that other projects train their generators from."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from flowprior.core.artifacts import atomic_dir, new_folder
from flowprior.core.io import write_json
from flowprior.core.progress import Progress
from flowprior.core.shards import ShardReader
from flowprior.stats.moments import Moments

Format = Literal["lightningdit", "mar"]
FORMATS: tuple[Format, ...] = ("lightningdit", "mar")
IMAGES_PER_FILE = 10_000
"""As in LightningDiT's own."""
LOG_VARIANCE = -30.0
"""Of a posterior without spread: what MAR's code clamps to."""
FACTS = "export.json"


class Exported(NamedTuple):
    """What was written.

    Attributes:
        num_images: So many.
        num_files: Of latents.
        shape: Of an image's latents, [d, h, w].
        std: One standard deviation for all channels of the training latents.
    """

    num_images: int
    num_files: int
    shape: tuple[int, int, int]
    std: float


def export_latents(
    latents: str | Path,
    out: str | Path,
    format: Format,
    *,
    split: str = "train",
    grid: tuple[int, int] | None = None,
    progress: bool | None = None,
) -> Exported:
    """Write the latents of the stage `encode_latents` in the layout that another project's loader reads.

    Both layouts are of images: the n tokens of an image become a grid of h x w places with d channels each, row by row;
    `latents.flatten(2).transpose(1, 2)` turns [b, d, h, w] into what `Autoencoder.decode` takes. Values are as
    encoded, float32. Where mirror images were not encoded, the image itself stands in their place.

    - `lightningdit`: safetensors of at most 10 000 images with `latents`, `latents_flip` [b, d, h, w] and `labels`; the
      mean and standard deviation of each channel of the training latents in `latents_stats.pt`.
    - `mar`: a folder for each class with an .npz for each image, `moments` and `moments_flip` [2 d, h, w]: mean and log
      variance, which is -30, of no spread.

    Args:
        latents: The folder that the stage wrote.
        out: The folder to write; must not exist, or be empty.
        format: One of `FORMATS`.
        split: `train` or `validation`.
        grid: h and w; by default a square, or where n is no square number 1 x n.
        progress: Whether to show how far it is on standard error; by default on a terminal.

    Raises:
        ArtifactError: The latents are absent or damaged, or have no such split.
        ValueError: The format is unknown, the grid does not hold n tokens, `out` holds something, or, for `mar`, which
            numbers classes by their folders, a class has no image.
    """
    if format not in FORMATS:
        raise ValueError(f"there is no format {format!r}; there are {', '.join(FORMATS)}")
    out = new_folder(out)
    source = ShardReader.open(Path(latents).expanduser(), "latents", "the stage `encode_latents`")
    rows, labels = (source.column(split, name) for name in ("latents", "labels"))
    _, _, tokens, dim = rows.shape
    height, width = grid or _grid(tokens)
    if height * width != tokens:
        raise ValueError(f"a grid of {height} x {width} does not hold {tokens} tokens")
    classes = int(source.manifest.get("num_classes", 0))
    if format == "mar":
        _check_classes(labels.read(), classes, split)
    bar = Progress("images", len(rows), progress)

    def pieces() -> Iterator[tuple[int, Float[ndarray, "b v d h w"], ndarray]]:
        for start in range(0, len(rows), IMAGES_PER_FILE):
            which = np.arange(start, min(start + IMAGES_PER_FILE, len(rows)))
            values = rows.gather(which).astype(np.float32)
            maps = np.moveaxis(values, -1, -2).reshape(*values.shape[:2], dim, height, width)
            yield start, np.ascontiguousarray(maps), labels.gather(which).astype(np.int64)
            bar.at(int(which[-1]) + 1)

    write: Callable[[Path, int, ndarray, ndarray], int] = (
        _lightningdit if format == "lightningdit" else _mar
    )
    mean, std, both = _statistics(source)
    with atomic_dir(out) as folder:
        num_files = sum(write(folder, *piece) for piece in pieces())
        if format == "lightningdit":
            shape = (1, dim, 1, 1)
            stats = {"mean": mean.view(shape), "std": std.view(shape)}
            torch.save(stats, folder / "latents_stats.pt")
        facts: dict[str, Any] = {
            "format": format,
            "split": split,
            "num_images": len(rows),
            "shape": [dim, height, width],
            "num_classes": classes,
            "mean": mean.tolist(),
            "std": std.tolist(),
            "std_of_all": both,
            "latents": source.digest,
        }
        write_json(folder / FACTS, facts)
    bar.end()
    return Exported(len(rows), num_files, (dim, height, width), both)


def _grid(tokens: int) -> tuple[int, int]:
    side = math.isqrt(tokens)
    return (side, side) if side * side == tokens else (1, tokens)


def _statistics(source: ShardReader) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"], float]:
    """Mean and standard deviation of each channel of the training latents, not mirrored, and the latter of all."""
    column = source.column("train", "latents")
    moments = Moments(column.shape[-1])
    for block in column.blocks():
        moments.update(torch.from_numpy(block[:, 0].astype(np.float32)).flatten(0, -2))
    return moments.mean.float(), moments.covariance.diagonal().sqrt().float(), moments.std


def _lightningdit(
    folder: Path, start: int, maps: Float[ndarray, "b v d h w"], labels: ndarray
) -> int:
    """One file."""
    from safetensors.torch import save_file

    latents = torch.from_numpy(maps)
    save_file(
        {
            "latents": latents[:, 0].clone(),
            "latents_flip": latents[:, -1].clone(),
            "labels": torch.from_numpy(labels),
        },
        folder / f"latents_rank00_shard{start // IMAGES_PER_FILE:03d}.safetensors",
    )
    return 1


def _mar(folder: Path, start: int, maps: Float[ndarray, "b v d h w"], labels: ndarray) -> int:
    """A file for each image."""
    still = np.full_like(maps[0, 0], LOG_VARIANCE)
    for row, (views, label) in enumerate(zip(maps, labels, strict=True), start):
        home = folder / f"{label:05d}"
        home.mkdir(exist_ok=True)
        moments, flipped = (np.concatenate([views[place], still]) for place in (0, -1))
        np.savez(home / f"{row:08d}.npz", moments=moments, moments_flip=flipped)
    return len(maps)


def _check_classes(labels: ndarray, classes: int, split: str) -> None:
    absent = sorted(set(range(classes)) - set(np.unique(labels).tolist()))
    if absent:
        raise ValueError(
            f"class {absent[0]} has no image in the split {split!r}: MAR numbers classes by their folders, in order, "
            "so that all behind it would be others"
        )
