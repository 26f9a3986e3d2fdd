"""What every source of images promises, opened by its name."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from flowprior.images.opening import open_both_splits, open_images
from flowprior.images.sets import SPLITS, ImageSet

from .sources import SIZE, SOURCES, bmp, open_both, value_of, values, write_source


@pytest.mark.parametrize("source", SOURCES)
def test_every_image_of_a_source_is_in_one_split_with_its_class(
    tmp_path: Path, source: str
) -> None:
    """Thirty images of three classes: six are held out, two of each; grey values tell which are which."""
    splits = open_both(source, write_source(source, tmp_path / "root"))
    assert sorted(values(splits["train"]) + values(splits["validation"])) == list(range(30))
    assert splits["validation"].labels.bincount().tolist() == [2, 2, 2]
    for images in splits.values():
        assert images.num_classes == 3
        assert images.labels.dtype == torch.int64
        assert [value // 10 for value in values(images)] == images.labels.tolist()


@pytest.mark.parametrize("source", SOURCES)
def test_images_are_rgb_float32_in_minus_one_to_one(tmp_path: Path, source: str) -> None:
    """By index in the order asked for, from a list, a range or a tensor."""
    images = open_both(source, write_source(source, tmp_path / "root"))["train"]
    batch = images.images([3, 0, 3])
    assert batch.shape == (3, 3, SIZE, SIZE)
    assert batch.dtype == torch.float32
    assert -1 <= batch.min() <= batch.max() <= 1
    assert torch.equal(batch, images.images(torch.tensor([3, 0, 3])))
    assert [value_of(image) for image in batch] == [values(images)[row] for row in (3, 0, 3)]


@pytest.mark.parametrize("source", SOURCES)
def test_the_digest_fixes_which_images_a_split_holds(tmp_path: Path, source: str) -> None:
    """Equal for a second opening and a copy elsewhere; other splits, split seeds and sizes differ."""
    root = write_source(source, tmp_path / "root")
    copy = write_source(source, tmp_path / "copy")
    one, again, elsewhere = (open_both(source, path) for path in (root, root, copy))
    other = open_both(source, root, split_seed=1)
    larger = open_images(source, "train", split_seed=0, size=2 * SIZE, path=str(root))
    for split in SPLITS:
        assert one[split].digest == again[split].digest == elsewhere[split].digest
    digests = [images.digest for images in [*one.values(), *other.values(), larger]]
    assert len(set(digests)) == 5


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("held_out", ["val", "validation"])
def test_a_source_that_comes_split_stays_split(tmp_path: Path, source: str, held_out: str) -> None:
    """Subfolders `train` and `val` (or `validation`) are the splits, whole, whatever the split seed."""
    write_source(source, tmp_path / "train")
    write_source(source, tmp_path / held_out, per_class=2, first=100)
    for seed in (0, 1):
        splits = open_both(source, tmp_path, seed)
        assert sorted(values(splits["train"])) == list(range(30))
        assert sorted(values(splits["validation"])) == list(range(100, 106))
        assert splits["validation"].labels.bincount().tolist() == [2, 2, 2]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", ["train", "Training"])
def test_of_a_training_folder_alone_a_part_is_held_out(
    tmp_path: Path, source: str, name: str
) -> None:
    write_source(source, tmp_path / "one" / name)
    write_source(source, tmp_path / "two")
    for split, images in open_both(source, tmp_path / "one").items():
        plain = open_both(source, tmp_path / "two")[split]
        assert values(images) == values(plain)
        assert images.class_names == plain.class_names


@pytest.mark.parametrize("source", SOURCES)
def test_a_held_out_folder_alone_is_an_error(tmp_path: Path, source: str) -> None:
    """Else it would be trained on, or a class."""
    write_source(source, tmp_path / "val")
    for split in SPLITS:
        with pytest.raises(ValueError, match="has the folder val and none for training"):
            open_images(source, split, split_seed=0, size=SIZE, path=str(tmp_path))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "test", "Val", "TEST"])
def test_splits_are_called_in_many_ways(tmp_path: Path, source: str, held_out: str) -> None:
    write_source(source, tmp_path / "Train")
    write_source(source, tmp_path / held_out, per_class=2, first=100)
    splits = open_both(source, tmp_path)
    assert sorted(values(splits["train"])) == list(range(30))
    assert sorted(values(splits["validation"])) == list(range(100, 106))


@pytest.mark.parametrize("source", SOURCES)
def test_of_two_held_out_folders_the_validation_set_is_taken(tmp_path: Path, source: str) -> None:
    for first, name in enumerate(("train", "test", "val")):
        write_source(source, tmp_path / name, per_class=2, first=20 * first)
    assert sorted(values(open_both(source, tmp_path)["validation"])) == list(range(40, 46))


@pytest.mark.parametrize("source", SOURCES)
def test_the_digest_follows_names_classes_and_content(tmp_path: Path, source: str) -> None:
    """And not the place: a copy elsewhere has the same one. Also for another image of the same size."""

    def digests(root: Path) -> list[str]:
        return [one.digest for one in open_both(source, root).values()]

    noise = np.random.default_rng(0).integers(0, 256, (3, 40, 48, 48, 3), dtype=np.uint8)

    def write(root: Path, change: str = "") -> Path:
        root.mkdir(parents=True)
        for label in range(2):
            for i in range(10):
                place = (label, i) if change != "swapped" or i > 1 else (label, 1 - i)
                content = bmp(noise[place])
                name = f"{label}/{i}" if change != "relabelled" or i or label else "1/10"
                if source == "imagefolder":
                    (root / name).parent.mkdir(exist_ok=True)
                    (root / f"{name}.bmp").write_bytes(content)
                else:
                    kind, _, key = name.partition("/")
                    members = {f"{label}-{key}.bmp": content, f"{label}-{key}.cls": kind.encode()}
                    with tarfile.open(root / "0.tar", "a") as tar:
                        for member, data in members.items():
                            info = tarfile.TarInfo(member)
                            info.size = len(data)
                            tar.addfile(info, io.BytesIO(data))
        return root

    plain = digests(write(tmp_path / "plain"))
    assert digests(write(tmp_path / "elsewhere" / "copy")) == plain
    assert digests(write(tmp_path / "swapped", "swapped")) != plain
    assert digests(write(tmp_path / "relabelled", "relabelled")) != plain


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_too_small_to_hold_anything_out_is_an_error(tmp_path: Path, source: str) -> None:
    """Two images a class leave the validation split empty; training still works."""
    root = write_source(source, tmp_path / "root", per_class=2)
    assert len(open_images(source, "train", split_seed=0, size=SIZE, path=str(root))) == 6
    with pytest.raises(ValueError, match="validation split is empty; there are only 6 images"):
        open_images(source, "validation", split_seed=0, size=SIZE, path=str(root))


@pytest.mark.parametrize("source", SOURCES)
def test_a_path_is_needed_and_must_be_a_directory(tmp_path: Path, source: str) -> None:
    """Both messages name the parameter."""
    with pytest.raises(ValueError, match=f"images.source '{source}' needs images.path"):
        open_images(source, "train", split_seed=0, size=SIZE)
    for path in (tmp_path / "absent", Path(__file__)):  # and no pattern
        with pytest.raises(ValueError, match=r"images\.path .* is not a directory"):
            open_images(source, "train", split_seed=0, size=SIZE, path=str(path))


def test_an_unknown_source_is_an_error_that_names_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'imagefoldr', allowed: .* did you mean 'imagefolder'\?"):
        open_images("imagefoldr", "train", split_seed=0, size=SIZE, path=str(tmp_path))


PLUGIN = """
import torch
from flowprior.images.sets import split_rows

class Stripes:  # without class_names and channels
    num_classes = 2
    corrupt = {}

    def __init__(self, split, *, size, split_seed, path, max_corrupt, count):
        labels = torch.arange(count) % 2
        self.rows = split_rows(labels, split, split_seed)
        self.labels, self.digest, self.size = labels[self.rows], f"stripes {split}", size

    def __len__(self):
        return len(self.rows)

    def images(self, rows, crops=None):
        shade = self.rows[torch.as_tensor(rows)].float() / 100 - 1
        return shade.view(-1, 1, 1, 1).expand(-1, 3, self.size, self.size)
"""


@pytest.fixture
def plugin(write_plugin: Callable[..., Path]) -> str:
    """Name of a source of one's own."""
    write_plugin("images", PLUGIN)
    return "plugins.images.own:Stripes"


def test_a_source_of_ones_own_is_opened_by_its_name_with_its_options(plugin: str) -> None:
    """Without an edit of the package; both splits keep what every source promises."""
    train, held_out = open_both_splits(
        {"source": plugin, "split_seed": 0, "size": 4, "options": {"count": 50}}
    )
    assert isinstance(train, ImageSet)
    assert (len(train), len(held_out)) == (40, 10)
    found = {
        round(float(one.images([row]).mean() * 100 + 100))
        for one in (train, held_out)
        for row in range(len(one))
    }
    assert found == set(range(50))
    assert train.images([0, 1]).shape == (2, 3, 4, 4)
    assert (train.channels, train.class_names) == (3, ("0", "1"))


def test_options_that_a_source_of_ones_own_does_not_take_are_an_error(plugin: str) -> None:
    with pytest.raises(TypeError, match="colour"):
        open_images(plugin, "train", split_seed=0, size=4, options={"count": 50, "colour": "red"})
