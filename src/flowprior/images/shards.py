"""Images in webdataset shards: tars with an image and its class in each sample."""

import glob
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flowprior.core.io import ArtifactError, read_json
from flowprior.core.tars import tar_members
from flowprior.images.decoding import EXTENSIONS, EncodedImages
from flowprior.images.listing import (
    ALL,
    HELD_OUT,
    TRAIN,
    Listing,
    Place,
    existing_folder,
    no_training,
    split_name,
)
from flowprior.images.sets import Split

CLASSES_FILE = "classes.json"
"""Names of the classes in their order, beside shards whose samples have numbers."""
LABEL_BYTES = 2**20
"""Of a .cls or .json that are read."""
KEYS = ("label", "cls", "class")
"""What a sample's .json may call its class."""
WORDS = re.compile(r"[a-z]+")


class WebShards(EncodedImages):
    """One split of webdataset shards: in each sample an image, and its class in a `.cls` or under `label` in a `.json`.

    Classes are numbers, in any range and with holes, or names; samples without are of one class. A folder with folders
    for splits, or with shards that have a split's name in theirs, comes split; so does a pattern for each split. The
    shards are indexed once, members are then read by offset; nothing in them is unpickled.

    Args:
        root: The folder, or a pattern with braces, `shards/train-{0000..0255}.tar`, or stars.
        split: Which one.
        split_seed: Decides what is held out where the source does not come split.
        size: Height and width to deliver.
        channels: 1 or 3; None takes 1 where images are grey.
        max_corrupt: Share that may turn out not to be decodable.
        held_out: Folder or pattern of held-out shards, where they lie elsewhere.

    Raises:
        ValueError: There are no shards, one is damaged, the split is empty, or held-out images have classes that
            training images lack.
    """

    def __init__(
        self,
        root: Path,
        split: Split,
        split_seed: int,
        size: int,
        max_corrupt: float = 0.0,
        channels: int | None = None,
        held_out: Path | None = None,
    ) -> None:
        shards = _splits(root) if held_out is None else _Shards(_all(root), _all(held_out), {})
        listing = _listing(root, shards.of(split), shards.passed_over)
        training = None
        if shards.held_out is not None:
            training = listing if split == "train" else _listing(root, shards.train, {})
        super().__init__(
            "webdataset", listing, training, root, split, split_seed, size, channels, max_corrupt
        )


class _Shards(NamedTuple):
    """Shards of the splits; no held-out ones where a part of the training shards is held out."""

    train: list[Path]
    held_out: list[Path] | None
    passed_over: dict[str, int]

    def of(self, split: Split) -> list[Path]:
        return self.train if split == "train" or self.held_out is None else self.held_out


def expand(pattern: str) -> list[str]:
    """A pattern's braces written out: `{0000..0003}` counts with as many digits, `{a,b}` lists.

    Raises:
        ValueError: A range runs backwards.
    """
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if ends is None:
        middles = found[1].split(",")
    else:
        first, last = int(ends[1]), int(ends[2])
        if last < first:
            raise ValueError(f"the range {found[0]} of {pattern} runs backwards")
        middles = [f"{number:0{len(ends[1])}d}" for number in range(first, last + 1)]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [whole for middle in middles for whole in expand(before + middle + after)]


def _all(root: Path) -> list[Path]:
    """The shards of a folder or pattern."""
    if root.is_dir():
        shards = sorted(path for path in root.glob("*.tar") if not path.name.startswith("."))
    else:
        names = expand(str(root))
        stars = any(glob.has_magic(name) for name in names)
        shards = [Path(name) for each in names for name in sorted(glob.glob(each))]
        missing = [] if stars else sorted(set(names) - set(map(str, shards)))
        if missing:
            raise ValueError(
                f"{root}: {len(missing)} of {len(names)} shards are absent, among them {missing[0]}"
            )
    if not shards:
        raise ValueError(f"{root} holds no .tar shards")
    return shards


def _splits(root: Path) -> _Shards:
    """Shards of each split, by folders or by the words in their names."""
    if not root.is_dir():
        return _Shards(_all(root), None, {})
    folders: dict[Split, list[Path]] = {"train": [], "validation": []}
    for folder in sorted(root.iterdir()):
        split = split_name(folder.name) if folder.is_dir() else None
        if split is not None:
            folders[split].append(folder)
    train, held_out = folders["train"], folders["validation"]
    if train and held_out:
        best = min(held_out, key=lambda folder: HELD_OUT.index(folder.name.lower()))
        return _Shards(_all(train[0]), _all(best), {})
    if train:
        return _Shards(_all(train[0]), None, {})
    if held_out:
        raise ValueError(no_training(root, held_out[0].name))
    return _by_name(root, _all(root))


def _by_name(root: Path, shards: Sequence[Path]) -> _Shards:
    """Shards that all say in their names which split they are of; of several held-out ones the first kind."""
    words = [set(WORDS.findall(shard.stem.lower())) for shard in shards]
    train = [shard for shard, of_one in zip(shards, words, strict=True) if of_one & set(TRAIN)]
    held_out = {
        kind: [shard for shard, of_one in zip(shards, words, strict=True) if kind in of_one]
        for kind in HELD_OUT
    }
    kinds = [kind for kind in HELD_OUT if held_out[kind]]
    if not kinds:
        return _Shards(list(shards), None, {})
    named = {shard for kind in kinds for shard in held_out[kind]} | set(train)
    others = sorted(set(shards) - named)
    if not train or others:
        raise ValueError(
            f"{root} has {held_out[kinds[0]][0].name}, which is held out by its name, beside "
            f"{(others or held_out[kinds[0]])[0].name}, whose split its name does not tell; put each split in a folder"
        )
    beside = sum(len(held_out[kind]) for kind in kinds[1:])
    passed_over = {f"shards of {' and '.join(kinds[1:])}": beside} if beside else {}
    return _Shards(train, held_out[kinds[0]], passed_over)


def _listing(root: Path, shards: Iterable[Path], more: dict[str, int]) -> Listing:
    names: list[str] = []
    classes: list[str | None] = []
    places: list[Place] = []
    passed_over = Counter(more)
    for shard in shards:
        for key, label, place in _index_shard(shard, passed_over):
            names.append(f"{shard.name}/{key}")
            classes.append(label)
            places.append(place)
    if not names:
        raise ValueError(f"{root}: its shards hold no images")
    without = classes.count(None)
    if without and without < len(classes):
        first = names[classes.index(None)]
        raise ValueError(
            f"{root}: {without} of {len(classes)} samples have no class, among them {first}"
        )
    order = _order(root)
    if order is not None:
        known = frozenset(order)
        classes = [None if each is None else _called(each, order, known, root) for each in classes]
    called = [ALL if label is None else label for label in classes]
    return Listing(names, called, places, dict(passed_over), order)


def _order(root: Path) -> list[str] | None:
    """The names of the classes, where a file says them."""
    folder = root if root.is_dir() else root.parent
    for home in (folder, folder.parent):
        if (home / CLASSES_FILE).is_file():
            names = read_json(home / CLASSES_FILE)
            distinct = isinstance(names, list) and len(set(map(str, names))) == len(names)
            if not distinct or not all(isinstance(name, str) and name for name in names):
                raise ArtifactError(
                    f"{home / CLASSES_FILE} must list the classes' names, each once"
                )
            return list(names)
    return None


def _called(label: str, order: Sequence[str], names: frozenset[str], root: Path) -> str:
    """The name of a class: its number counts first, since that is what a list of names is for."""
    if label.isdigit() and int(label) < len(order):
        return order[int(label)]
    if label in names:
        return label
    raise ValueError(f"{root}: {CLASSES_FILE} has {len(order)} names, none for the class {label!r}")


def open_shards(
    split: Split,
    *,
    path: str | None,
    split_seed: int,
    size: int,
    max_corrupt: float,
    channels: int | None = None,
    shards: str | None = None,
    held_out: str | None = None,
    **_: Any,
) -> WebShards:
    """Shards as a source of images; see `flowprior.images.opening.open_images`."""
    root = existing_folder(path, "webdataset")
    training, others = root / (shards or ""), None if held_out is None else root / held_out
    return WebShards(training, split, split_seed, size, max_corrupt, channels, others)


def _index_shard(shard: Path, passed_over: Counter[str]) -> Iterator[tuple[str, str | None, Place]]:
    """(key, class, place of the image) of every sample of a shard, in order."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    for info in tar_members(shard):
        if info.isreg():
            folder, slash, name = info.name.rpartition("/")
            key, _, extension = name.partition(".")
            key = folder + slash + key
            samples.setdefault(key, {})["." + extension.lower()] = (info.offset_data, info.size)
    with shard.open("rb") as file:

        def text(place: tuple[int, int]) -> str:
            file.seek(place[0])
            return file.read(min(place[1], LABEL_BYTES)).decode("utf-8", "replace").strip()

        for key, members in samples.items():
            image = next((members[e] for e in EXTENSIONS if e in members), None)
            if image is None:
                if not key.rpartition("/")[2]:  # hidden
                    passed_over["hidden files and folders"] += 1
                    continue
                kinds = " ".join(sorted(members))
                passed_over[f"samples without an image ({kinds})"] += 1
                continue
            label = None
            if ".cls" in members:
                label = _named(text(members[".cls"]), shard, key)
            elif ".json" in members:
                label = _in_json(text(members[".json"]), shard, key)
            yield key, label, Place(shard, image[1], image[0])


def _named(label: str, shard: Path, key: str) -> str:
    if not label or len(label) > 200 or not label.isprintable():
        raise ValueError(
            f"{shard}: sample {key!r} has the class {json.dumps(label[:40])}, no name or number"
        )
    return str(int(label)) if re.fullmatch(r"\d{1,9}", label) else label


def _in_json(content: str, shard: Path, key: str) -> str | None:
    """The class that a sample's .json names; None where it names none."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shard}: the .json of sample {key!r} is not JSON: {error}") from None
    if not isinstance(found, dict):
        return None
    label = next((found[name] for name in KEYS if name in found), None)
    return None if label is None else _named(str(label), shard, key)
