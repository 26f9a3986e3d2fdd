"""`flowprior images`: import and show, and a line for every mistake."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from ..images.sources import grey, write_tree
from .conftest import invoke, mistake, output


def test_import_says_what_it_wrote_and_what_to_set(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=images, y=np.arange(20) % 2)
    out = tmp_path / "out"
    said = output(
        "images", "import", f"array:{tmp_path}/x.npz", "--out", str(out), "--classes", "cat, dog"
    )
    assert said.splitlines() == [
        f"{out}: 20 train",
        "there is one split; a fifth of each class will be held out",
        f"-S images.source=webdataset -S images.path={out}",
    ]
    said = output("images", "show", str(out))
    assert said.splitlines() == [
        f"{out} (webdataset): 16 training and 4 held-out images, 2 classes, grey",
        "  cat: 8 + 2",
        "  dog: 8 + 2",
        "sizes of 20: all 8 x 8",
        "modes: L 20",
    ]


def test_show_tells_sizes_modes_and_what_is_passed_over(tmp_path: Path) -> None:
    write_tree(tmp_path / "i", ["a", "b"], 5)
    Image.new("RGBA", (40, 30)).save(tmp_path / "i/a/big.png")
    (tmp_path / "i/a/notes.txt").touch()
    os.symlink("/nowhere", tmp_path / "i/b/link.png")
    said = output("images", "show", str(tmp_path / "i"), "--out", str(tmp_path / "s/sheet.png"))
    assert "(imagefolder): 9 training and 2 held-out images, 2 classes, in colour" in said
    assert "sizes of 11: 8 x 8 to 40 x 30, most often 8 x 8 (10)" in said
    assert "modes: RGB 10, RGBA 1" in said
    assert "passed over: 1 .txt files\npassed over: 1 links that lead nowhere" in said
    with Image.open(tmp_path / "s/sheet.png") as sheet:
        assert sheet.width > sheet.height > 100


def test_show_fails_where_images_are_damaged_or_too_few(tmp_path: Path) -> None:
    write_tree(tmp_path / "i", ["a"], 2)
    (tmp_path / "i/a/000.png").write_bytes(b"no image")
    result = invoke("images", "show", str(tmp_path / "i"))
    assert result.exit_code == 1
    assert "problem: " in result.stdout
    assert "000.png: cannot be opened as an image" in result.stdout
    assert "the validation split is empty" in result.stdout


def test_many_classes_are_not_all_listed(tmp_path: Path) -> None:
    for number in range(25):
        (tmp_path / f"{number:02d}").mkdir()
        for i in range(3):
            grey(number).save(tmp_path / f"{number:02d}" / f"{i}.png")
    assert "  ... and 5 more" in output("images", "show", str(tmp_path))


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no images" in mistake("images", "show", str(tmp_path / "empty"))
    assert "is no folder, and no pattern" in mistake("images", "show", str(tmp_path / "typo"))
    new = "--out", str(tmp_path / "new")
    assert "no source to import" in mistake("images", "import", "mnist", *new)
    assert "is not LOW,HIGH" in mistake("images", "import", "array:x.npy", *new, "--range", "1")
    assert "is not LOW,HIGH" in mistake("images", "import", "array:x.npy", *new, "--range", "1,0")
