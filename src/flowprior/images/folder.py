"""Images as a tree of files, a folder for each class."""

import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from flowprior.images.decoding import EXTENSIONS, EncodedImages
from flowprior.images.listing import (
    ALL,
    HELD_OUT,
    Listing,
    Place,
    existing_folder,
    no_training,
    split_name,
    told,
)
from flowprior.images.sets import Split

SYSTEM = ("__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found")
"""What operating systems leave, beside all whose name begins with a dot."""
NO_IMAGE = "folders without an image"
BESIDE = "folders beside those of the splits"
DEAD_LINKS = "links that lead nowhere"


class ImageFolder(EncodedImages):
    """One split of a tree `root/class/file`; classes are numbered in the order of their names.

    The class is the first folder below the root, however deep an image lies in it; images that lie in no folder are of
    one class. A root with folders for splits (train or training; val, valid, validation or test; in any case) comes
    split; where there is one for training alone, what is held out is of it. Such a folder that has images itself, and
    stands among others, is a class. Links are followed.

    Args:
        root: The folder.
        split: Which one.
        split_seed: Decides what is held out where the source does not come split.
        size: Height and width to deliver.
        channels: 1 or 3; None takes 1 where images are grey.
        max_corrupt: Share that may turn out not to be decodable.

    Raises:
        ValueError: There are no images, the split is empty, or held-out images have classes that training images lack.
    """

    def __init__(
        self,
        root: Path,
        split: Split,
        split_seed: int,
        size: int,
        max_corrupt: float = 0.0,
        channels: int | None = None,
    ) -> None:
        bases, passed_over = _splits(root)
        base = bases.of(split)
        listing = _listing(base, passed_over)
        training = None
        if bases.held_out is not None:
            training = listing if split == "train" else _listing(bases.train, {})
        super().__init__(
            "imagefolder", listing, training, base, split, split_seed, size, channels, max_corrupt
        )


class _Bases(NamedTuple):
    """Folders of the splits; no held-out one where images of the training folder are held out."""

    train: Path
    held_out: Path | None

    def of(self, split: Split) -> Path:
        return self.train if split == "train" or self.held_out is None else self.held_out


def _splits(root: Path) -> tuple[_Bases, dict[str, int]]:
    """The folders of the splits, and how many other folders stand beside them."""
    named: dict[Split, list[str]] = {"train": [], "validation": []}
    others = 0
    for folder in sorted(entry.name for entry in os.scandir(root) if entry.is_dir()):
        split = split_name(folder)
        if split is not None:
            named[split].append(folder)
        elif not _of_the_system(folder):
            others += 1
    for split, folders in named.items():
        alike = [name for name in folders if name.lower() == folders[0].lower()]
        if len(alike) > 1:
            raise ValueError(f"{root} has both {alike[0]} and {alike[1]}: which is for {split}?")
    train, held_out = named["train"], named["validation"]
    if train and held_out:
        best = min(held_out, key=lambda name: HELD_OUT.index(name.lower()))
        beside = others + len(train) + len(held_out) - 2
        return _Bases(root / train[0], root / best), {BESIDE: beside} if beside else {}
    if train and not (others and _has_images(root / train[0])):
        return _Bases(root / train[0], None), {BESIDE: others} if others else {}
    if held_out and not others:
        raise ValueError(no_training(root, held_out[0]))
    return _Bases(root, None), {}


def _listing(base: Path, beside: dict[str, int]) -> Listing:
    """Images below a folder, from one walk, since there may be a million."""
    images: dict[str, int] = {}
    passed_over = Counter(beside)
    top: set[str] = set()
    waiting = [""]
    seen = set()
    while waiting:
        above = waiting.pop()
        here = os.stat(base / above)
        if (here.st_dev, here.st_ino) in seen:  # a link that leads back, or twice to one folder
            passed_over["folders that were met before"] += 1
            continue
        seen.add((here.st_dev, here.st_ino))
        with os.scandir(base / above) as entries:
            for entry in entries:
                ending = os.path.splitext(entry.name.lower())[1]
                if _of_the_system(entry.name):
                    passed_over["hidden files and folders"] += 1
                elif entry.is_dir():
                    waiting.append(f"{above}{entry.name}/")
                    top |= set() if above else {entry.name}
                elif not entry.is_file():
                    dead = entry.is_symlink()
                    passed_over[DEAD_LINKS if dead else "files that are no regular ones"] += 1
                elif ending in EXTENSIONS:
                    images[above + entry.name] = entry.stat().st_size
                else:
                    passed_over[f"{ending} files" if ending else "files without an ending"] += 1
    if not images:
        raise ValueError(
            f"{base} holds no images; expected {base}/<class>/<file> with one of {' '.join(EXTENSIONS)}"
            + (f"; passed over {told(passed_over)}" if passed_over else "")
        )
    names = sorted(images)
    in_folders = [name for name in names if "/" in name]
    if in_folders and len(in_folders) < len(names):
        passed_over["images beside the folders of classes"] = len(names) - len(in_folders)
        names = in_folders
    classes = [name.split("/")[0] if "/" in name else ALL for name in names]
    if empty := len(top - set(classes)):
        passed_over[NO_IMAGE] = empty
    places = [Place(base / name, images[name]) for name in names]
    return Listing(names, classes, places, dict(passed_over))


def _has_images(folder: Path) -> bool:
    """Whether images lie right in it."""
    return any(entry.name.lower().endswith(EXTENSIONS) for entry in os.scandir(folder))


def _of_the_system(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM


def open_folder(
    split: Split,
    *,
    path: str | None,
    split_seed: int,
    size: int,
    max_corrupt: float,
    channels: int | None = None,
    **_: Any,
) -> ImageFolder:
    """A tree as a source of images; see `flowprior.images.opening.open_images`."""
    root = existing_folder(path, "imagefolder")
    return ImageFolder(root, split, split_seed, size, max_corrupt, channels)
