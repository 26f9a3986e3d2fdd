"""Trees of images."""

import os
from pathlib import Path

import pytest

from flowprior.images.folder import ImageFolder

from .sources import SIZE, grey, open_both, values, write_tree


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


def test_a_class_may_be_a_link_to_a_folder(tmp_path: Path) -> None:
    write_tree(tmp_path / "elsewhere", ["ant"], 6)
    (tmp_path / "root").mkdir()
    os.symlink(tmp_path / "elsewhere" / "ant", tmp_path / "root" / "ant")
    assert len(ImageFolder(tmp_path / "root", "train", 0, SIZE)) == 5


def test_what_the_system_leaves_is_no_class_and_no_image(tmp_path: Path) -> None:
    """Jupyter's, macOS's, Windows's and a NAS's."""
    write_tree(tmp_path, ["cat", "dog"], 5)
    for hidden in (
        ".ipynb_checkpoints/0-checkpoint.png",
        "__MACOSX/cat/._0.png",
        "@eaDir/cat/0.png",
        "cat/._000.png",
    ):
        (tmp_path / hidden).parent.mkdir(parents=True, exist_ok=True)
        grey(0).save(tmp_path / hidden)
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"")
    for images in open_both("imagefolder", tmp_path).values():
        assert images.class_names == ("cat", "dog")
        assert images.passed_over == {"hidden files and folders": 5}


def test_what_is_passed_over_is_told_by_its_kind(tmp_path: Path) -> None:
    """Files of other endings, links that lead nowhere, folders without an image, images beside the folders."""
    write_tree(tmp_path, ["a", "b"], 5)
    for i in range(3):
        (tmp_path / "a" / f"{i}.jpg2000").touch()
        os.symlink(f"/not/fetched{i}.png", tmp_path / "b" / f"l{i}.png")
    os.symlink("/not/mounted", tmp_path / "c")
    (tmp_path / "d").mkdir()
    (tmp_path / "LICENSE").touch()
    grey(0).save(tmp_path / "beside.png")
    with pytest.warns(
        UserWarning, match=r"passed over .*3 \.jpg2000 files.* 4 links that lead nowhere"
    ):
        images = ImageFolder(tmp_path, "train", 0, SIZE)
    assert images.passed_over == {
        ".jpg2000 files": 3,
        "links that lead nowhere": 4,
        "folders without an image": 1,
        "files without an ending": 1,
        "images beside the folders of classes": 1,
    }
    assert len(images) == 8


@pytest.mark.parametrize("ending", ["tif", "TIFF", "gif", "jfif", "webp", "jpe", "pgm"])
def test_images_of_many_formats_are_taken(tmp_path: Path, ending: str) -> None:
    (tmp_path / "a").mkdir()
    kinds = {"tif": "TIFF", "tiff": "TIFF", "jfif": "JPEG", "jpe": "JPEG", "pgm": "PPM"}
    for i in range(5):
        image = grey(50 * i).convert("L")
        image.save(tmp_path / "a" / f"{i}.{ending}", kinds.get(ending.lower(), ending))
    both = open_both("imagefolder", tmp_path)
    found = sorted(values(both["train"]) + values(both["validation"]))
    assert all(abs(value - 50 * i) <= 2 for i, value in enumerate(found))


def test_of_an_animation_the_first_picture_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for i in range(5):
        grey(10).save(
            tmp_path / "a" / f"{i}.gif", save_all=True, append_images=[grey(200), grey(250)]
        )
    assert values(ImageFolder(tmp_path, "train", 0, SIZE)) == [10] * 4


@pytest.mark.parametrize("others", [["aeroplane", "tvmonitor"], ["aeroplane"]])
def test_a_class_may_be_called_train(tmp_path: Path, others: list[str]) -> None:
    """As in Pascal VOC: it has images itself, and stands among others."""
    images = ImageFolder(write_tree(tmp_path, [*others, "train"], 5), "train", 0, SIZE)
    assert images.class_names == tuple(sorted([*others, "train"]))


def test_folders_beside_those_of_the_splits_are_told(tmp_path: Path) -> None:
    for name in ("train", "val", "unlabelled"):
        write_tree(tmp_path / name, ["a", "b"], 3)
    with pytest.warns(UserWarning, match="passed over 1 folders beside those of the splits"):
        images = ImageFolder(tmp_path, "train", 0, SIZE)
    assert len(images) == 6


def test_two_folders_of_a_name_are_an_error(tmp_path: Path) -> None:
    for name in ("train", "Train", "val"):
        write_tree(tmp_path / name, ["a"], 3)
    with pytest.raises(ValueError, match="has both Train and train"):
        ImageFolder(tmp_path, "train", 0, SIZE)


@pytest.mark.parametrize("splits", [("",), ("train", "val")])
def test_images_in_no_folder_are_of_one_class(tmp_path: Path, splits: tuple[str, ...]) -> None:
    for first, split in enumerate(splits):
        (tmp_path / split).mkdir(exist_ok=True)
        for i in range(10):
            grey(20 * first + i).save(tmp_path / split / f"{i}.png")
    both = open_both("imagefolder", tmp_path)
    assert {images.class_names for images in both.values()} == {("all",)}
    assert len(both["train"]) == (8 if len(splits) == 1 else 10)


def test_a_link_that_leads_back_is_followed_once(tmp_path: Path) -> None:
    write_tree(tmp_path, ["a"], 5)
    os.symlink(tmp_path, tmp_path / "a" / "again")
    assert len(ImageFolder(tmp_path, "train", 0, SIZE)) == 4


def test_the_walk_meets_each_folder_once_where_there_are_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be a million files; the other split is listed for its classes alone."""
    for name in ("train", "val"):
        write_tree(tmp_path / name, ["a", "b"], 3)
    walked: list[str] = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (walked.append(str(path)), scan(path))[1])
    ImageFolder(tmp_path, "train", 0, SIZE)
    assert sorted(walked) == sorted({*walked})
    assert not [path for path in walked if "/val/" in path]
