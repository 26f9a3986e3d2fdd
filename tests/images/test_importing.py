"""Data sets of other kinds become shards that hold the same images and classes."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy import ndarray
from PIL import Image
from safetensors.numpy import save_file

from flowprior.images.importing import import_images
from flowprior.images.opening import open_images
from flowprior.images.sets import SPLITS, ImageSet

FASHION = Path("/usr/share/datasets/fashion-mnist")
DRAW = np.random.default_rng(0)
GREYS = DRAW.integers(0, 256, (40, 6, 5), dtype=np.uint8)
COLOURS = DRAW.integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
CLASSES = (np.arange(40) % 4).astype(np.int64)


def write_idx(path: Path, array: ndarray) -> None:
    """A file as MNIST's, packed if its name ends so."""
    kind = {"uint8": 0x08, ">i4": 0x0C}[array.dtype.name if array.dtype == np.uint8 else ">i4"]
    content = struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def opened(root: Path, size: int = 5) -> list[ImageSet]:
    return [
        open_images("webdataset", split, split_seed=0, size=size, path=str(root))
        for split in SPLITS
    ]


def pixels(images: ImageSet) -> ndarray:
    """[n, h, w, c] in bytes, in the order of the shards."""
    both = images.images(range(len(images)))
    return ((both + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def as_shown(arrays: ndarray) -> ndarray:
    """The centre 5 x 5 of images of 6 x 5."""
    cropped = arrays[:, 0:5]
    return cropped if cropped.ndim == 4 else cropped[..., None]


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_with_both_splits(tmp_path: Path, ending: str) -> None:
    """As MNIST comes; the classes are named by hand."""
    for name, rows in (("train", slice(0, 30)), ("t10k", slice(30, 40))):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte{ending}", GREYS[rows])
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte{ending}", CLASSES[rows].astype(np.uint8))
    names = ["boot", "bag", "shirt", "coat"]
    done = import_images(f"idx:{tmp_path}", tmp_path / "out", classes=names)
    assert done.counts == {"train": 30, "validation": 10}
    train, held_out = opened(tmp_path / "out")
    assert train.class_names == tuple(names)
    assert np.array_equal(train.labels, CLASSES[:30])
    assert np.array_equal(pixels(train), as_shown(GREYS[:30]))
    assert np.array_equal(pixels(held_out), as_shown(GREYS[30:]))
    again = import_images(f"idx:{tmp_path}", tmp_path / "again", classes=names)
    assert again == done
    for file in (tmp_path / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors"])
@pytest.mark.parametrize("images", [GREYS, COLOURS, GREYS[..., None]])
def test_arrays(tmp_path: Path, kind: str, images: ndarray) -> None:
    """Of one split; a part of it is held out."""
    file, labels = tmp_path / f"x.{kind}", None
    if kind == "npy":
        np.save(file, images)
        labels = tmp_path / "y.npy"
        np.save(labels, CLASSES)
    elif kind == "npz":
        np.savez(file, x=images, y=CLASSES)
    else:
        save_file({"images": images, "labels": CLASSES}, file)
    done = import_images(f"array:{file}", tmp_path / "out", labels=labels)
    assert done.counts == {"train": 40}
    train, held_out = opened(tmp_path / "out")
    assert len(train) + len(held_out) == 40
    rows = [int(place.offset) for one in (train, held_out) for place in one.places]  # type: ignore[attr-defined]
    order = np.argsort(rows)
    assert np.array_equal(
        np.concatenate([pixels(train), pixels(held_out)])[order], as_shown(images)
    )
    assert np.array_equal(torch.cat([train.labels, held_out.labels]).numpy()[order], CLASSES)


def test_fractions_need_a_range_and_keep_to_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=GREYS / 255, y=CLASSES)
    with pytest.raises(ValueError, match="say which value is black and which is white"):
        import_images(f"array:{tmp_path}/x.npz", tmp_path / "out")
    with pytest.raises(ValueError, match=r"values reach from 0.* to 0.*, not 0\.25 to 0\.5"):
        import_images(f"array:{tmp_path}/x.npz", tmp_path / "out", value_range=(0.25, 0.5))
    assert not (tmp_path / "out").exists()
    import_images(f"array:{tmp_path}/x.npz", tmp_path / "out", value_range=(0, 1))
    train, _ = opened(tmp_path / "out")
    assert {image.tobytes() for image in pixels(train)} <= {
        image.tobytes() for image in as_shown(GREYS)
    }


def test_without_labels_all_images_are_of_one_class(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", COLOURS)
    import_images(f"array:{tmp_path}/x.npy", tmp_path / "out")
    assert opened(tmp_path / "out")[0].class_names == ("all",)


def test_a_folder_of_hugging_faces(tmp_path: Path) -> None:
    """Image and label are found by their types; names and splits come along."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "kind": datasets.ClassLabel(names=["d", "c", "b", "a"]),
            "caption": datasets.Value("string"),
        }
    )

    def part(rows: slice) -> object:
        pictures = [Image.fromarray(image) for image in COLOURS[rows]]
        columns = {"picture": pictures, "kind": CLASSES[rows].tolist()}
        columns["caption"] = ["x"] * len(pictures)
        return datasets.Dataset.from_dict(columns, features=features)

    both = datasets.DatasetDict({"train": part(slice(0, 30)), "test": part(slice(30, 40))})
    both.save_to_disk(str(tmp_path / "set"))
    done = import_images(f"hf:{tmp_path / 'set'}", tmp_path / "out", progress=False)
    assert done.classes == ["d", "c", "b", "a"]
    train, held_out = opened(tmp_path / "out")
    assert train.class_names == ("d", "c", "b", "a")
    assert np.array_equal(pixels(train), as_shown(COLOURS[:30]))
    assert np.array_equal(held_out.labels, CLASSES[30:])


def test_a_data_set_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever way it calls its splits; what it names as classes comes along."""
    import torchvision.datasets

    class Own:
        def __init__(self, root: str, split: str, download: bool) -> None:
            if split not in ("train", "test"):
                raise ValueError(split)
            self.rows = range(30) if split == "train" else range(30, 40)
            self.classes = ["d", "c", "b", "a"]

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            row = self.rows[index]  # IndexError ends the loop
            return Image.fromarray(COLOURS[row]), int(CLASSES[row])

    monkeypatch.setattr(torchvision.datasets, "Own", Own, raising=False)
    done = import_images("torchvision:Own", tmp_path / "out")
    assert done.counts == {"train": 30, "validation": 10}
    train, _ = opened(tmp_path / "out")
    assert train.class_names == ("d", "c", "b", "a")
    assert np.array_equal(pixels(train), as_shown(COLOURS[:30]))
    with pytest.raises(ValueError, match="torchvision has no data set 'Nothing'"):
        import_images("torchvision:Nothing", tmp_path / "new")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mnist", "is no source to import; name idx:DIR"),
        ("idx:", "is no source to import"),
        ("idx:{root}/none", "is no folder of IDX files"),
        ("idx:{root}", "holds no train-images-idx3-ubyte"),
        ("array:{root}/x.txt", r"arrays are \.npy, \.npz or \.safetensors"),
        ("array:{root}/two.npz", "must hold one array"),
        ("array:{root}/flat.npy", "must hold one array"),
        ("array:{root}/five.npy", "1, 3 or 4"),
        ("array:{root}/few.npz", r"40 images, and labels \[3\]"),
    ],
)
def test_what_cannot_be_imported_is_told(tmp_path: Path, source: str, message: str) -> None:
    np.savez(tmp_path / "two.npz", a=GREYS, b=GREYS)
    np.save(tmp_path / "flat.npy", GREYS[0])
    np.save(tmp_path / "five.npy", np.zeros((4, 6, 5, 5), np.uint8))
    np.savez(tmp_path / "few.npz", x=GREYS, y=CLASSES[:3])
    with pytest.raises(ValueError, match=message):
        import_images(source.format(root=tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_idx_files_are_told(tmp_path: Path) -> None:
    file = tmp_path / "train-images-idx3-ubyte"
    write_idx(file, GREYS)
    whole = file.read_bytes()
    for content, message in (
        (whole[:-1], "has 1199 bytes of values"),
        (b"\1" + whole[1:], "no IDX"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            import_images(f"idx:{tmp_path}", tmp_path / "out")
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(whole)[:-20])
    file.unlink()
    with pytest.raises(ValueError, match="is damaged"):
        import_images(f"idx:{tmp_path}", tmp_path / "out")


def test_nothing_is_overwritten_and_classes_have_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=GREYS, y=CLASSES)
    source = f"array:{tmp_path}/x.npz"
    with pytest.raises(ValueError, match="has the class 2; there are 2 names"):
        import_images(source, tmp_path / "out", classes=["a", "b"])
    with pytest.raises(ValueError, match="the same name"):
        import_images(source, tmp_path / "out", classes=["a", "b", "a", "c"])
    import_images(source, tmp_path / "out")
    with pytest.raises(ValueError, match="exists already"):
        import_images(source, tmp_path / "out")


@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_held_out_images_of_fashion_mnist(tmp_path: Path) -> None:
    """Real files: their 10 000 test images, taken as training images to be quick."""
    for what in ("images-idx3", "labels-idx1"):
        (tmp_path / f"train-{what}-ubyte.gz").symlink_to(FASHION / f"t10k-{what}-ubyte.gz")
    done = import_images(f"idx:{tmp_path}", tmp_path / "out")
    assert done.counts == {"train": 10_000}
    train, held_out = opened(tmp_path / "out", size=28)
    assert (len(train), len(held_out), train.channels) == (8000, 2000, 1)
    assert train.labels.bincount().tolist() == [800] * 10


@pytest.mark.parametrize("mode", ["I", "I;16"])
def test_pictures_of_any_mode_keep_their_levels(tmp_path: Path, mode: str) -> None:
    """16 bits become 8; turned as their EXIF data say."""
    datasets = pytest.importorskip("datasets")
    deep = [Image.fromarray(grey.astype(np.uint16) * 257) for grey in GREYS[:10]]
    features = datasets.Features({"image": datasets.Image(mode=mode)})
    data = datasets.Dataset.from_dict({"image": deep}, features=features)
    data.save_to_disk(str(tmp_path / "set"))  # of one split
    import_images(f"hf:{tmp_path / 'set'}", tmp_path / "out", progress=False)
    train, held_out = opened(tmp_path / "out")
    found = {image.tobytes() for one in (train, held_out) for image in pixels(one)}
    assert found == {image.tobytes() for image in as_shown(GREYS[:10])}


def test_labels_that_are_kept_secret_or_are_fractions(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    kinds = datasets.ClassLabel(names=["a", "b", "c", "d"])
    features = datasets.Features({"image": datasets.Image(), "label": kinds})

    def part(labels: list[int]) -> object:
        pictures = [Image.fromarray(image) for image in COLOURS[: len(labels)]]
        return datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)

    splits = {"test": part([-1] * 5), "validation": part([0, 1]), "train": part([0, 1, 2, 3] * 3)}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "set"))
    done = import_images(f"hf:{tmp_path / 'set'}", tmp_path / "out", progress=False)
    assert done.counts == {"train": 12, "validation": 2}
    np.savez(tmp_path / "x.npz", x=GREYS, y=CLASSES / 2)
    with pytest.raises(ValueError, match="labels are whole numbers or names, found float64"):
        import_images(f"array:{tmp_path}/x.npz", tmp_path / "new")
