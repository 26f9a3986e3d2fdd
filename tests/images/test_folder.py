"""Trees of images."""

import os
from pathlib import Path

import pytest

from flowprior.images.folder import ImageFolder

from .sources import SIZE, grey, open_both, write_tree


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
