"""Images as a tree of files, a folder for each class."""

import os
from pathlib import Path
from typing import Any

import torch

from flowprior.core.io import digest
from flowprior.images.decoding import EXTENSIONS, EncodedImages
from flowprior.images.sets import Split, existing_folder, presplit_folder, split_rows


class ImageFolder(EncodedImages):
    """One split of a tree `root/class/file`; classes are numbered in the order of their names.

    Raises:
        ValueError: There are no images, the split is empty, or held-out images have classes that training images lack.
    """

    def __init__(
        self, root: Path, split: Split, split_seed: int, size: int, max_corrupt: float = 0.0
    ) -> None:
        super().__init__(size, max_corrupt)
        folder = presplit_folder(root, split)
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


def open_folder(
    split: Split, *, path: str | None, split_seed: int, size: int, max_corrupt: float, **_: Any
) -> ImageFolder:
    """A tree as a source of images; see `flowprior.images.opening.open_images`."""
    return ImageFolder(existing_folder(path, "imagefolder"), split, split_seed, size, max_corrupt)
