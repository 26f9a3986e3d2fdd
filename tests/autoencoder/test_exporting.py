"""Latents in the layouts of LightningDiT and MAR, read as their loaders do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy import ndarray
from safetensors import safe_open
from torchvision.datasets import DatasetFolder

from flowprior.autoencoder import exporting
from flowprior.autoencoder.exporting import export_latents
from flowprior.core.io import ArtifactError, read_json
from flowprior.core.shard_writer import ShardWriter

CLASSES = 3


def latents(root: Path, tokens: int = 4, views: int = 2, images: int = 20) -> Path:
    """Shards as `encode_latents` writes them: training images of all classes, held-out ones without the last."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    writer = ShardWriter(root, rows_per_block=6)
    for split, count, classes in (("train", images, CLASSES), ("validation", 5, CLASSES - 1)):
        for start in range(0, count, 4):
            size = min(4, count - start)
            values = 3 + 0.5 * rng.normal(size=(size, views, tokens, 2))
            labels = np.arange(start, start + size) % classes
            writer.write(split, {"latents": values.astype(np.float16), "labels": labels})
    writer.close(kind="latents", provenance={}, num_classes=CLASSES)
    return root


def stored(root: Path, split: str = "train") -> tuple[ndarray, ndarray]:
    """Latents and labels as they were."""
    reader = exporting.ShardReader.open(root, "latents", "a test")
    return reader.column(split, "latents").read(), reader.column(split, "labels").read()


def places(rows: ndarray, height: int, width: int) -> ndarray:
    """[n, tokens, d] as [n, d, h, w], by a loop."""
    out = np.empty((len(rows), rows.shape[-1], height, width), np.float32)
    for token in range(rows.shape[1]):
        out[:, :, token // width, token % width] = rows[:, token]
    return out


def read_lightningdit(folder: Path) -> dict[str, torch.Tensor]:
    """All files in the order of their names, by slices as their data set takes them."""
    parts: dict[str, list[torch.Tensor]] = {"latents": [], "latents_flip": [], "labels": []}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt", device="cpu") as opened:
            for key, found in parts.items():
                found.append(opened.get_slice(key)[:])
    return {key: torch.cat(found) for key, found in parts.items()}


class Cached(DatasetFolder):
    """MAR's data set, giving the file too."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root), loader=np.load, extensions=(".npz",))

    def __getitem__(self, index: int) -> Any:
        path, label = self.samples[index]
        return path, label, np.load(path)


def test_lightningdit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "IMAGES_PER_FILE", 8)
    source = latents(tmp_path / "latents")
    done = export_latents(source, tmp_path / "out", "lightningdit")
    values, labels = stored(source)
    assert done[:3] == (20, 3, (2, 2, 2))
    assert done.std == pytest.approx(0.5, rel=0.15)
    found = read_lightningdit(tmp_path / "out")
    assert np.array_equal(found["latents"].numpy(), places(values[:, 0], 2, 2))
    assert np.array_equal(found["latents_flip"].numpy(), places(values[:, 1], 2, 2))
    assert np.array_equal(found["labels"].numpy(), labels)
    assert found["labels"].dtype == torch.int64
    stats = torch.load(tmp_path / "out" / "latents_stats.pt")
    assert stats["mean"].shape == stats["std"].shape == (1, 2, 1, 1)
    normal = (found["latents"] - stats["mean"]) / stats["std"]
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std((0, 2, 3), correction=0), torch.ones(2))


def test_mar(tmp_path: Path) -> None:
    source = latents(tmp_path / "latents")
    done = export_latents(source, tmp_path / "out", "mar")
    assert done.num_files == 20
    values, labels = stored(source)
    maps = [places(values[:, view], 2, 2) for view in (0, 1)]
    folder = Cached(tmp_path / "out")
    assert len(folder) == 20
    for path, label, moments in folder:
        row = int(Path(path).stem)
        assert label == labels[row]
        for name, expected in zip(("moments", "moments_flip"), maps, strict=True):
            mean, log_variance = np.split(moments[name], 2)
            assert mean.dtype == np.float32
            assert np.array_equal(mean, expected[row])
            assert (log_variance == -30).all()


def test_what_is_written_decodes_as_it_did(tmp_path: Path) -> None:
    """The way back that the documentation gives."""
    source = latents(tmp_path / "latents", tokens=6)
    export_latents(source, tmp_path / "out", "lightningdit", grid=(2, 3))
    back = read_lightningdit(tmp_path / "out")["latents"].flatten(2).transpose(1, 2)
    assert np.array_equal(back.numpy(), stored(source)[0][:, 0].astype(np.float32))


def test_statistics_are_those_of_the_training_latents_whatever_the_split(tmp_path: Path) -> None:
    source = latents(tmp_path / "latents")
    export_latents(source, tmp_path / "train", "lightningdit")
    export_latents(source, tmp_path / "held_out", "lightningdit", split="validation")
    one, two = (read_json(tmp_path / name / "export.json") for name in ("train", "held_out"))
    assert one["mean"] == two["mean"]
    assert (one["num_images"], two["num_images"]) == (20, 5)


def test_without_mirror_images_the_image_stands_in_their_place(tmp_path: Path) -> None:
    source = latents(tmp_path / "latents", views=1, tokens=5)
    done = export_latents(source, tmp_path / "out", "lightningdit")
    assert done.shape == (2, 1, 5)
    found = read_lightningdit(tmp_path / "out")
    assert torch.equal(found["latents"], found["latents_flip"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "mar", "grid": (3, 3)}, "a grid of 3 x 3 does not hold 4 tokens"),
        ({"format": "mar", "split": "validation"}, "class 2 has no image in the split"),
        ({"format": "mar", "split": "test"}, "has no split 'test'"),
    ],
)
def test_what_cannot_be_is_an_error_that_leaves_nothing(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        export_latents(latents(tmp_path / "latents"), tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    source = latents(tmp_path / "latents")
    (tmp_path / "out").mkdir()
    export_latents(source, tmp_path / "out", "mar")
    with pytest.raises(ValueError, match="exists already"):
        export_latents(source, tmp_path / "out", "mar")
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="exists already"):
        export_latents(source, tmp_path / "file", "mar")
    with pytest.raises(ArtifactError, match="the stage `encode_latents`"):
        export_latents(tmp_path / "none", tmp_path / "new", "mar")
