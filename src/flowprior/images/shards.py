"""Images in webdataset shards: tars with an image and a class (`.cls`) in each sample."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from flowprior.core.io import digest
from flowprior.core.tars import tar_members
from flowprior.images.decoding import EXTENSIONS, MAX_IMAGE_BYTES, EncodedImages
from flowprior.images.sets import Split, existing_folder, presplit_folder, split_rows


class WebShards(EncodedImages):
    """One split of webdataset shards with an image and a class (`.cls`, an integer) in each sample.

    The shards are indexed once, members are then read by offset; nothing in them is unpickled.

    Raises:
        ValueError: There are no shards, one is damaged, the split is empty, or held-out images have classes that
            training images lack.
    """

    def __init__(
        self, root: Path, split: Split, split_seed: int, size: int, max_corrupt: float = 0.0
    ) -> None:
        super().__init__(size, max_corrupt)
        folder = presplit_folder(root, split)
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


def open_shards(
    split: Split, *, path: str | None, split_seed: int, size: int, max_corrupt: float, **_: Any
) -> WebShards:
    """Shards as a source of images; see `flowprior.images.opening.open_images`."""
    return WebShards(existing_folder(path, "webdataset"), split, split_seed, size, max_corrupt)


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
