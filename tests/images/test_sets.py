"""Image sources: their range and shape, their split, and the words of their errors."""

import io
import os
import tarfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from flowprior.images.decoding import decode
from flowprior.images.digits import Digits
from flowprior.images.folder import ImageFolder
from flowprior.images.opening import open_images
from flowprior.images.sets import (
    SPLITS,
    ImageSet,
    Source,
    Split,
    WrongImagesError,
    batches,
    check_images,
    split_rows,
)
from flowprior.images.shards import WebShards

PROPERTY = settings(deadline=None, derandomize=True, max_examples=50)
SIZE = 8
SOURCES: tuple[Source, Source] = ("imagefolder", "webdataset")


def grey(value: int, width: int = SIZE, height: int = SIZE) -> Image.Image:
    """An image of one grey value, which tells images apart."""
    return Image.new("RGB", (width, height), (value, value, value))


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


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


def write_source(source: Source, root: Path, per_class: int = 10, first: int = 0) -> Path:
    """Three classes, grey value = first + class * per_class + i."""
    if source == "imagefolder":
        return write_tree(root, ["ant", "bee", "cat"], per_class, first)
    return write_shards(root, 3, per_class, first)


def open_both(source: Source, path: Path | None, split_seed: int = 0) -> dict[Split, ImageSet]:
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


# --- the split --------------------------------------------------------------------------------------


@PROPERTY
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    split_seed=st.integers(0, 1000),
    shuffle=st.integers(0, 1000),
)
def test_the_split_is_disjoint_covering_and_stratified(
    counts: list[int], split_seed: int, shuffle: int
) -> None:
    """Every row is in one split, ascending, and a fifth of every class is held out, rounded."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(shuffle))]
    rows = {split: split_rows(labels, split, split_seed) for split in SPLITS}
    assert sorted([*rows["train"].tolist(), *rows["validation"].tolist()]) == list(
        range(len(labels))
    )
    held_out = labels[rows["validation"]].bincount(minlength=len(counts)).tolist()
    assert held_out == [round(count * 0.2) for count in counts]
    for split in SPLITS:
        assert rows[split].tolist() == sorted(rows[split].tolist())
        assert torch.equal(rows[split], split_rows(labels, split, split_seed))


def test_the_split_moves_with_its_seed_and_with_nothing_else() -> None:
    """Another split seed holds out other rows; the global stream neither decides nor is touched."""
    labels = torch.arange(100) % 4
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = split_rows(labels, "validation", 0)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(one, split_rows(labels, "validation", 0))
    assert not torch.equal(one, split_rows(labels, "validation", 1))


def test_the_split_of_a_class_does_not_depend_on_the_others() -> None:
    """Adding a class moves no row of the old ones between the splits."""
    labels = torch.arange(60) % 3
    more = torch.cat([labels, torch.full((20,), 7)])
    old = split_rows(more, "validation", 0)
    assert torch.equal(old[old < 60], split_rows(labels, "validation", 0))


# --- digits -----------------------------------------------------------------------------------------


def test_digits_are_one_channel_of_eight_by_eight_in_minus_one_to_one() -> None:
    """float32, and both ends of the range are reached."""
    for digits in open_both("digits", None).values():
        images = digits.images(range(len(digits)))
        assert images.shape == (len(digits), 1, 8, 8)
        assert images.dtype == torch.float32
        assert (images.min(), images.max()) == (-1, 1)
        assert digits.labels.dtype == torch.int64
        assert digits.num_classes == 10


def test_digits_are_those_of_scikit_learn_each_in_one_split() -> None:
    """1 797 scans in all, pixels 0 ... 16 mapped to -1 ... 1, each with its label."""
    pixels, labels = load_digits(return_X_y=True)
    expected = sorted((tuple(p / 8 - 1), int(y)) for p, y in zip(pixels, labels, strict=True))
    found = []
    for digits in open_both("digits", None).values():
        flat = digits.images(range(len(digits))).flatten(1).double()
        found += [(tuple(p.tolist()), int(y)) for p, y in zip(flat, digits.labels, strict=True)]
    assert sorted(found) == expected


def test_a_fifth_of_every_digit_is_held_out() -> None:
    """The class frequencies of the splits are those of the whole, to the rounding."""
    splits = open_both("digits", None)
    total = torch.from_numpy(load_digits(return_X_y=True)[1]).bincount()
    assert splits["validation"].labels.bincount().tolist() == [
        round(n * 0.2) for n in total.tolist()
    ]


def test_the_split_of_the_digits_never_changes() -> None:
    """Golden values, first computed with torch 2.15.0: the first held-out images show these digits."""
    digits = Digits("validation", 0)
    assert len(digits) == 359
    assert digits.labels[:12].tolist() == [3, 2, 3, 5, 9, 4, 7, 2, 2, 3, 6, 4]


def test_digits_have_one_size() -> None:
    """Any other is an error that says so."""
    with pytest.raises(ValueError, match=r"digits are 8 x 8, found .* 16"):
        open_images("digits", "train", split_seed=0, size=16)


# --- trees and shards -------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
def test_every_image_of_a_source_is_in_one_split_with_its_class(
    tmp_path: Path, source: Source
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
def test_images_are_rgb_float32_in_minus_one_to_one(tmp_path: Path, source: Source) -> None:
    """By index in the order asked for, from a list, a range or a tensor."""
    images = open_both(source, write_source(source, tmp_path / "root"))["train"]
    batch = images.images([3, 0, 3])
    assert batch.shape == (3, 3, SIZE, SIZE)
    assert batch.dtype == torch.float32
    assert -1 <= batch.min() <= batch.max() <= 1
    assert torch.equal(batch, images.images(torch.tensor([3, 0, 3])))
    assert [value_of(image) for image in batch] == [values(images)[row] for row in (3, 0, 3)]


@pytest.mark.parametrize("source", SOURCES)
def test_the_digest_fixes_which_images_a_split_holds(tmp_path: Path, source: Source) -> None:
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


def test_the_digest_of_the_digits_changes_with_split_and_split_seed() -> None:
    """And is the same each time."""
    one, again, other = (open_both("digits", None, seed) for seed in (0, 0, 1))
    assert [one[s].digest for s in SPLITS] == [again[s].digest for s in SPLITS]
    assert len({images.digest for images in [*one.values(), *other.values()]}) == 4


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("held_out", ["val", "validation"])
def test_a_source_that_comes_split_stays_split(
    tmp_path: Path, source: Source, held_out: str
) -> None:
    """Subfolders `train` and `val` (or `validation`) are the splits, whole, whatever the split seed."""
    write_source(source, tmp_path / "train")
    write_source(source, tmp_path / held_out, per_class=2, first=100)
    for seed in (0, 1):
        splits = open_both(source, tmp_path, seed)
        assert sorted(values(splits["train"])) == list(range(30))
        assert sorted(values(splits["validation"])) == list(range(100, 106))
        assert splits["validation"].labels.bincount().tolist() == [2, 2, 2]


@pytest.mark.parametrize("source", ["imagefolder", "webdataset"])
@pytest.mark.parametrize("split", SPLITS)
def test_a_training_folder_without_a_validation_folder_is_an_error(
    tmp_path: Path, source: Source, split: Split
) -> None:
    """Else images of the training folder would be validated on, or the root split anew."""
    write_source(source, tmp_path / "train")
    with pytest.raises(ValueError, match="but not the other"):
        open_images(source, split, split_seed=0, size=SIZE, path=str(tmp_path))


def test_a_class_has_the_same_number_in_both_splits(tmp_path: Path) -> None:
    """Also where the validation folder lacks a class."""
    write_tree(tmp_path / "train", ["ant", "bee", "cat"], 2)
    write_tree(tmp_path / "val", ["bee", "cat"], 2, first=100)
    splits = open_both("imagefolder", tmp_path)
    assert splits["train"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert splits["validation"].labels.tolist() == [1, 1, 2, 2]
    assert splits["train"].num_classes == splits["validation"].num_classes == 3


def test_classes_of_a_tree_are_numbered_by_name_and_reach_into_subfolders(tmp_path: Path) -> None:
    """Any of the extensions, in any case; other files and files beside the classes do not count."""
    for name in (
        "zebra/a.PNG",
        "ant/deep/b.jpg",
        "ant/c.bmp",
        "bee/d.webp",
        "bee/notes.txt",
        "e.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        grey(7).save(tmp_path / name) if name[-3:] != "txt" else (tmp_path / name).touch()
    images = ImageFolder(tmp_path, "train", 0, SIZE)
    assert images.labels.tolist() == [0, 0, 1, 2]
    assert images.num_classes == 3
    assert images.images(range(4)).shape == (4, 3, SIZE, SIZE)


def test_an_empty_tree_is_an_error_that_says_what_was_expected(tmp_path: Path) -> None:
    """No classes, or classes without images."""
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"holds no images; expected .*/<class>/<file> .*\.png"):
        ImageFolder(tmp_path, "train", 0, SIZE)


def test_a_folder_without_shards_is_an_error(tmp_path: Path) -> None:
    """The message names it."""
    with pytest.raises(ValueError, match=rf"{tmp_path} holds no \.tar shards"):
        WebShards(tmp_path, "train", 0, SIZE)


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_too_small_to_hold_anything_out_is_an_error(
    tmp_path: Path, source: Source
) -> None:
    """Two images a class leave the validation split empty; training still works."""
    root = write_source(source, tmp_path / "root", per_class=2)
    assert len(open_images(source, "train", split_seed=0, size=SIZE, path=str(root))) == 6
    with pytest.raises(ValueError, match="validation split is empty; there are only 6 images"):
        open_images(source, "validation", split_seed=0, size=SIZE, path=str(root))


@pytest.mark.parametrize("source", SOURCES)
def test_a_path_is_needed_and_must_be_a_directory(tmp_path: Path, source: Source) -> None:
    """Both messages name the parameter."""
    with pytest.raises(ValueError, match=f"images.source '{source}' needs images.path"):
        open_images(source, "train", split_seed=0, size=SIZE)
    for path in (tmp_path / "absent", Path(__file__)):
        with pytest.raises(ValueError, match=r"images\.path .* is not a directory"):
            open_images(source, "train", split_seed=0, size=SIZE, path=str(path))


def test_an_unknown_source_is_an_error(tmp_path: Path) -> None:
    """Refused by the function, or before it by the type checker where that is installed."""
    with pytest.raises((ValueError, TypeError)):
        open_images("cifar", "train", split_seed=0, size=SIZE, path=str(tmp_path))  # type: ignore[arg-type]


# --- shards that are wrong --------------------------------------------------------------------------


def write_tar(root: Path, members: dict[str, bytes]) -> Path:
    """One shard with the given members."""
    with tarfile.open(root / "0000.tar", "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return root


@pytest.mark.parametrize("text", [b"cat", b"", b"-1", b"1.0", b"1 2", b"9999999999", b"\xff"])
def test_a_class_that_is_no_number_is_an_error(tmp_path: Path, text: bytes) -> None:
    """The message names shard, sample and what was found."""
    write_tar(tmp_path, {"a.png": png(grey(0)), "a.cls": text})
    with pytest.raises(
        ValueError, match=r"0000\.tar: sample 'a' has the class \".*\", not a number"
    ):
        WebShards(tmp_path, "train", 0, SIZE)


@pytest.mark.parametrize("text", [b"3", b" 3\n", b"003"])
def test_a_class_may_have_space_around_it(tmp_path: Path, text: bytes) -> None:
    """As text editors leave it."""
    write_tar(tmp_path, {"a.png": png(grey(0)), "a.cls": text})
    images = WebShards(tmp_path, "train", 0, SIZE)
    assert images.labels.tolist() == [3]
    assert images.num_classes == 4


@pytest.mark.parametrize("extension", ["png", "cls"])
def test_a_sample_without_image_or_class_is_an_error(tmp_path: Path, extension: str) -> None:
    """The message names shard and sample."""
    members = {"a.png": png(grey(0)), "a.cls": b"1", "b.json": b"{}"}
    members[f"b.{extension}"] = members[f"a.{extension}"]
    write_tar(tmp_path, members)
    with pytest.raises(ValueError, match=r"0000\.tar: sample 'b' lacks an image or a \.cls member"):
        WebShards(tmp_path, "train", 0, SIZE)


@pytest.mark.parametrize("keep", [0, 100, 600, 1400])
def test_a_truncated_shard_is_an_error(tmp_path: Path, keep: int) -> None:
    """It is not read up to where it ends."""
    write_tar(
        tmp_path, {"a.png": png(grey(0)), "a.cls": b"1", "b.png": png(grey(1)), "b.cls": b"1"}
    )
    path = tmp_path / "0000.tar"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"0000\.tar"):
        WebShards(tmp_path, "train", 0, SIZE)


@pytest.mark.parametrize("folder", ["./", "v1.0/"])
def test_samples_may_lie_in_folders_of_a_shard(tmp_path: Path, folder: str) -> None:
    """`tar -C folder .` prefixes every name with `./`; webdataset takes the key up to the name's first dot."""
    members: dict[str, bytes] = {}
    for i in range(5):
        members |= {f"{folder}{i}.png": png(grey(i)), f"{folder}{i}.cls": b"0"}
    write_tar(tmp_path, members)
    assert len(list(webdataset.WebDataset(str(tmp_path / "0000.tar"), shardshuffle=False))) == 5
    assert len(WebShards(tmp_path, "train", 0, SIZE)) == 4


# --- decoding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "expected"), [(0, -1.0), (255, 1.0), (51, -0.6)])
@pytest.mark.parametrize("size", [(8, 8), (5, 5), (64, 64), (9, 30), (30, 9), (17, 100)])
def test_an_image_of_one_value_keeps_it_at_any_size(
    value: int, expected: float, size: tuple[int, int]
) -> None:
    """Black is -1 and white is 1, whatever is scaled and cropped."""
    image = decode(png(grey(value, *size)), SIZE, "x.png")
    assert image.shape == (3, SIZE, SIZE)
    torch.testing.assert_close(image, torch.full((3, SIZE, SIZE), expected), rtol=0, atol=1e-6)


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    """Every pixel comes through; channels come first."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    expected = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(decode(png(Image.fromarray(pixels)), SIZE, "x.png"), expected)


def test_the_centre_is_kept() -> None:
    """Of a wide image the sides go, of a tall one top and bottom."""
    for width, height in [(3 * SIZE, SIZE), (SIZE, 3 * SIZE)]:
        image = grey(0, width, height)
        image.paste(grey(200), ((width - SIZE) // 2, (height - SIZE) // 2))
        assert value_of(decode(png(image), SIZE, "x.png")) == 200


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_images_of_any_mode_become_rgb(mode: str) -> None:
    """Grey, transparent, palettes, bits."""
    buffer = io.BytesIO()
    grey(255).convert(mode).save(buffer, "TIFF")
    image = decode(buffer.getvalue(), SIZE, "x")
    torch.testing.assert_close(image, torch.ones(3, SIZE, SIZE), rtol=0, atol=1e-6)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8))


@pytest.mark.parametrize("content", [b"", b"not an image", png(NOISE)[:8], png(NOISE)[:300]])
def test_a_broken_image_is_an_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    """In a tree by its path, in a shard by the shard and the place in it."""
    tree, shard = tmp_path / "tree", tmp_path / "shard"
    (tree / "ant").mkdir(parents=True)
    (tree / "ant" / "broken.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"ant/broken\.png cannot be decoded as an image"):
        ImageFolder(tree, "train", 0, SIZE).images([0])
    shard.mkdir()
    write_tar(shard, {"broken.png": content, "broken.cls": b"0"})
    with pytest.raises(ValueError, match=r"0000\.tar at byte 512 cannot be decoded as an image"):
        WebShards(shard, "train", 0, SIZE).images([0])


def spoilt_png() -> bytes:
    """A PNG whose first data chunk claims to be shorter than it is, so that its rest looks like a chunk."""
    content = bytearray(png(NOISE))
    place = content.index(b"IDAT")
    content[place - 4 : place] = (10).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize("content", [spoilt_png(), b"P6 2x 2 255 ............"], ids=["png", "ppm"])
def test_an_image_spoilt_inside_is_an_error_that_names_the_file(content: bytes) -> None:
    """Whatever PIL raises for it."""
    with pytest.raises(ValueError, match=r"spoilt\.img cannot be decoded as an image"):
        decode(content, SIZE, "spoilt.img")


# --- one among many ---------------------------------------------------------------------------------


def tree_with_damage(root: Path, source: Source) -> Path:
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


@pytest.mark.parametrize("source", SOURCES)
def test_a_damaged_image_gives_its_place_to_the_next_of_its_class(
    tmp_path: Path, source: Source
) -> None:
    """The label stays right, the others are what they are, one warning tells, and the count is kept."""
    root = tree_with_damage(tmp_path / "root", source)
    images = open_images(source, "train", split_seed=1, size=SIZE, path=str(root), max_corrupt=0.2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        first = images.images(range(len(images)))
        again = images.images(range(len(images)))
    assert torch.equal(first, again)
    values = [value_of(image) for image in first]
    damaged = [i for i, value in enumerate(values) if values.count(value) > 1]
    assert len(set(values)) == len(images) - 1
    assert len(damaged) == 2
    assert damaged[1] == damaged[0] + 1
    assert images.labels[damaged[0]] == images.labels[damaged[1]] == 0
    assert [int(value >= 10) for value in values] == images.labels.tolist()
    assert len(told) == len(images.corrupt) == 1
    assert "another image of its class takes its place" in str(told[0].message)


@pytest.mark.parametrize("source", SOURCES)
def test_more_damage_than_allowed_is_an_error_that_counts_it(
    tmp_path: Path, source: Source
) -> None:
    root = tree_with_damage(tmp_path / "root", source)
    images = open_images(source, "train", split_seed=1, size=SIZE, path=str(root), max_corrupt=0.01)
    with pytest.raises(ValueError, match=r"1 of 16 images are damaged.*images\.max_corrupt 0\.01"):
        images.images(range(len(images)))


def test_a_class_without_a_whole_image_is_an_error(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", ["ant", "bee"], 3)
    write_tree(tmp_path / "val", ["ant", "bee"], 1)
    for file in (tmp_path / "train" / "ant").iterdir():
        file.write_bytes(b"")
    images = ImageFolder(tmp_path, "train", 0, SIZE, max_corrupt=0.9)
    with (
        pytest.warns(UserWarning, match="cannot be decoded"),
        pytest.raises(ValueError, match="no image of class 0 can be decoded"),
    ):
        images.images([0])


def test_an_image_that_went_away_counts_as_damaged(tmp_path: Path) -> None:
    write_tree(tmp_path, ["ant"], 10)
    images = ImageFolder(tmp_path, "train", 0, SIZE, max_corrupt=0.5)
    for file in sorted((tmp_path / "ant").iterdir())[:2]:
        file.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images.images(range(len(images)))
    assert len(images.corrupt) in (1, 2)  # one of the two may be held out


def test_other_images_than_an_artifact_was_made_from_are_told(tmp_path: Path) -> None:
    write_tree(tmp_path, ["ant", "bee"], 10)
    images = ImageFolder(tmp_path, "train", 0, SIZE)
    check_images(images, images.digest, Path("data/targets"), "extract_features")
    check_images(images, None, Path("data/targets"), "extract_features")
    grey(99).save(tmp_path / "bee" / "late.png")
    with pytest.raises(WrongImagesError, match=r"data/targets .*--downstream extract_features"):
        check_images(
            ImageFolder(tmp_path, "train", 0, SIZE),
            images.digest,
            Path("data/targets"),
            "extract_features",
        )


def test_a_class_may_be_a_link_to_a_folder(tmp_path: Path) -> None:
    write_tree(tmp_path / "elsewhere", ["ant"], 6)
    (tmp_path / "root").mkdir()
    os.symlink(tmp_path / "elsewhere" / "ant", tmp_path / "root" / "ant")
    assert len(ImageFolder(tmp_path / "root", "train", 0, SIZE)) == 5


# --- random crops -----------------------------------------------------------------------------------


def ramp(width: int, height: int) -> bytes:
    """Red grows to the right, green downwards, a level a pixel."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.arange(width)
    pixels[..., 1] = np.arange(height)[:, None]
    return png(Image.fromarray(pixels))


@pytest.mark.parametrize(
    ("down", "right", "red", "green"), [(0.0, 0.0, 0, 0), (0.99, 0.0, 0, 20), (0.0, 0.99, 40, 0)]
)
def test_a_crop_lies_where_it_is_drawn(down: float, right: float, red: int, green: int) -> None:
    """Without zoom a 60 x 40 image, cut to 20: all of its short side is 20 pixels, so 1/2 of the levels."""
    crop = torch.tensor([0.0, down, right, 0.0])
    image = (decode(ramp(60, 20), 20, "x", crop) + 1) * 127.5
    assert image[0, 0, 0] == pytest.approx(red, abs=0.6)
    taller = (decode(ramp(20, 40), 20, "x", crop) + 1) * 127.5
    assert taller[1, 0, 0] == pytest.approx(green, abs=0.6)


def test_a_crop_is_between_four_fifths_and_all_of_the_short_side_and_may_be_mirrored() -> None:
    """Seen by how far the levels of a ramp of 100 pixels reach."""
    reach = {}
    for zoom in (0.0, 0.5, 0.999):
        image = (decode(ramp(100, 100), 40, "x", torch.tensor([zoom, 0.0, 0.0, 0.0])) + 1) * 127.5
        reach[zoom] = float(image[0, 0].max() - image[0, 0].min())
    assert reach[0.0] == pytest.approx(97, abs=2)
    assert reach[0.999] == pytest.approx(78, abs=2)
    assert reach[0.0] > reach[0.5] > reach[0.999]
    plain, mirrored = (
        decode(ramp(100, 100), 40, "x", torch.tensor([0.3, 0.2, 0.1, side])) for side in (0.4, 0.6)
    )
    assert torch.equal(plain.flip(-1), mirrored)


def test_a_batch_takes_a_crop_for_each_image(tmp_path: Path) -> None:
    write_tree(tmp_path, ["ant"], 1)
    (tmp_path / "ant" / "000.png").write_bytes(ramp(30, 30))
    images = ImageFolder(tmp_path, "train", 0, SIZE)
    crops = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.9, 0.5, 0.9, 0.9]])
    found = images.images([0, 0], crops)
    for image, crop in zip(found, crops, strict=True):
        assert torch.equal(image, decode(ramp(30, 30), SIZE, "x", crop))
    with pytest.raises(ValueError, match="not cropped"):
        Digits("train", 0).images([0, 1], crops)


# --- batches ----------------------------------------------------------------------------------------


@PROPERTY
@given(n=st.integers(0, 50), size=st.integers(1, 60))
def test_batches_cover_every_index_once_in_order(n: int, size: int) -> None:
    """All but the last are full."""
    found = list(batches(n, size))
    assert [i for batch in found for i in batch] == list(range(n))
    assert all(len(batch) == size for batch in found[:-1])
    assert all(0 < len(batch) <= size for batch in found)
