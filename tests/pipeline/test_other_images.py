"""Whatever happens to images, nothing that was made of others passes for theirs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ..images.sources import bmp
from .workspace import STAGES, clone, run, stages_run

pytestmark = pytest.mark.slow
READ_IMAGES = ["extract_features", "train_ae", "encode_latents", "sample_eval"]


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that ran through on a folder of images; the prior knows nothing of them."""
    root: Path = tmp_path_factory.mktemp("own")
    for split, per_class in (("train", 30), ("val", 10)):
        for number in range(3 * per_class):
            file = root / "images" / split / f"class{number % 3}" / f"{number:02d}.bmp"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bmp(pixels(number + 1000 * (split == "val"))))
    repository = clone(
        root / "repository",
        images__source="imagefolder",
        images__path="data/images/mine",
        prior__source="gaussian",
        evaluation__judge="none",
    )
    (repository / "data/images/mine").symlink_to(root / "images")
    assert stages_run(run(["dvc", "repro"], repository)) == STAGES
    assert "up to date" in run(["dvc", "status", "dvc.yaml"], repository)
    return repository


def add(images: Path) -> None:
    Image.fromarray(pixels(7)).save(images / "train/class0/99.bmp")


def remove(images: Path) -> None:
    (images / "train/class0/00.bmp").unlink()


def replace(images: Path) -> None:
    """By another of the same size in bytes."""
    file = images / "val/class0/00.bmp"
    size = file.stat().st_size
    file.write_bytes(bmp(pixels(77)))
    assert file.stat().st_size == size


def relabel(images: Path) -> None:
    (images / "train/class0/00.bmp").rename(images / "train/class1/00.bmp")


def move_to_the_other_split(images: Path) -> None:
    (images / "train/class0/00.bmp").rename(images / "val/class0/88.bmp")


def stale(repository: Path) -> list[str]:
    """Stages whose images changed, by `dvc status`."""
    status = json.loads(run(["dvc", "status", "--json", "dvc.yaml"], repository).splitlines()[0])
    return [
        stage
        for stage in STAGES
        if any(
            "data/images/mine" in one.get("changed deps", {})
            for one in status.get(stage, [])
            if isinstance(one, dict)
        )
    ]


@pytest.mark.parametrize("change", [add, remove, replace, relabel, move_to_the_other_split])
def test_dvc_sees_what_happened_to_images(
    finished: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """And nothing where a link leads to an equal copy; stages that are run by hand refuse the mixture."""
    link = finished / "data/images/mine"
    original = link.resolve()
    copy = shutil.copytree(original, tmp_path / "copy")
    try:
        link.unlink()
        link.symlink_to(copy)
        assert stale(finished) == []
        change(copy)
        assert stale(finished) == READ_IMAGES
        with pytest.raises(AssertionError, match="was made from other images than"):
            run(["env", "PYTHONPATH=src", "python", "stages/encode_latents.py"], finished)
    finally:
        link.unlink()
        link.symlink_to(original)
    assert stale(finished) == []


def test_what_read_the_images_is_run_again(finished: Path, tmp_path: Path) -> None:
    """Of a prior that knows nothing of images, neither targets nor flow."""
    link = finished / "data/images/mine"
    copy = shutil.copytree(link.resolve(), tmp_path / "copy")
    link.unlink()
    link.symlink_to(copy)
    replace(copy)
    before = json.loads((finished / "metrics/encode_latents.json").read_text())
    assert stages_run(run(["dvc", "repro"], finished)) == [
        "extract_features",
        "train_ae",
        "encode_latents",
        "train_mar",
        "sample_eval",
    ]
    after = json.loads((finished / "metrics/encode_latents.json").read_text())
    assert after["images_digest"] != before["images_digest"]
    assert "up to date" in run(["dvc", "status", "dvc.yaml"], finished)
