"""`flowprior sample`: a picture from artifacts, and a line for every mistake."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowprior.autoencoder.shape import Shape
from flowprior.autoencoder.vit import build_autoencoder
from flowprior.cli.sample import SMALL
from flowprior.core import rng
from flowprior.core.trained import save_trained
from flowprior.figures.grid import by_row, picture
from flowprior.generation.sampler import Sampler
from flowprior.generators.protocol import LatentShape
from flowprior.mar.model import MAR
from flowprior.mar.shape import MARShape

from .conftest import mistake, output

PROVENANCE = {"config": "", "inputs": {}, "packages": {}}
NUM_CLASSES = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts of untrained models: four tokens of two dims, colour images of 8 x 8."""
    root = tmp_path_factory.mktemp("data")
    shape = Shape(8, 3, 4, num_latents=4, latent_dim=2, width=16, depth=1, num_heads=2)
    latents = LatentShape(4, 2, NUM_CLASSES)
    with rng.scoped(0, "models"):
        autoencoder = build_autoencoder(shape, "plain")
        mar = MAR(MARShape(*latents, 16, 1, 1, 2, 2, 16, 1, 0.0))
        for parameter in [*autoencoder.parameters(), *mar.parameters()]:
            torch.nn.init.normal_(parameter, std=0.5)  # else every image is grey
    config = {"model": "vit", "shape": shape._asdict(), "bottleneck": "plain"}
    save_trained(root / "autoencoder", "autoencoder", autoencoder, config, PROVENANCE)
    config = {
        "model": "mar",
        "sizes": mar.config,
        "latents": latents._asdict(),
        "latents_mean": [0.0, 0.0],
        "latents_std": 1.0,
    }
    save_trained(root / "mar", "generator", mar, config, PROVENANCE)
    return root


def sample(data: Path, out: Path, *options: str) -> np.ndarray:
    """Run the command; the picture's pixels."""
    said = output("sample", "--data", str(data), "--out", str(out), "--steps", "2", *options)
    assert re.fullmatch(rf"{out}: \d+ images\n", said)
    with Image.open(out) as image:
        return np.asarray(image)


def tiles(pixels: np.ndarray) -> np.ndarray:
    """Pages of 64 x 64 with a line between them, as [rows, columns, 64, 64, 3]."""
    rows, columns = (n // 65 for n in pixels.shape[:2])
    inner = pixels[1:, 1:].reshape(rows, 65, columns, 65, 3)
    return inner.swapaxes(1, 2)[:, :, :64, :64]


def test_a_class_fills_a_square(data: Path, tmp_path: Path) -> None:
    """Sixteen images by default, enlarged to be seen."""
    pixels = sample(data, tmp_path / "grid.png", "--label", "3")
    found = tiles(pixels)
    assert found.shape == (4, 4, 64, 64, 3)
    assert len(np.unique(found.reshape(16, -1), axis=0)) == 16


def test_every_label_is_a_row(data: Path, tmp_path: Path) -> None:
    labels = ["--label", "3", "--label", "0", "--num", "5"]
    assert tiles(sample(data, tmp_path / "grid.png", *labels)).shape[:2] == (2, 5)


def test_the_picture_is_what_the_sampler_draws(data: Path, tmp_path: Path) -> None:
    """With all tokens one by one unless told otherwise."""
    pixels = sample(data, tmp_path / "grid.png", "--label", "1", "--num", "4", "--guidance", "2")
    images = Sampler(data, torch.device("cpu"))(
        torch.tensor([1] * 4),
        rng.generator(0, "sample", 0),
        num_iterations=4,
        head_steps=2,
        guidance_scale=2.0,
    )
    assert (
        tiles(pixels)[:, :, ::8, ::8].reshape(4, 8, 8, 3) == images.permute(0, 2, 3, 1).numpy()
    ).all()


def test_the_seed_decides(data: Path, tmp_path: Path) -> None:
    one, two, other = (
        sample(data, tmp_path / "grid.png", "--label", "1", "--num", "4", "--seed", seed)
        for seed in ("0", "0", "1")
    )
    assert (one == two).all()
    assert (one != other).any()


def test_large_and_grey_images_stand_as_they_are() -> None:
    """An incomplete last row stays grey; nothing is enlarged beyond need."""
    images = torch.zeros(3, 1, 100, 100, dtype=torch.uint8)
    page = picture(by_row(images, columns=2), smallest=SMALL)
    assert page.mode == "L"
    assert page.size == (203, 203)
    assert page.getpixel((150, 150)) == 160
    assert page.getpixel((50, 150)) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--label", "4"], "--label: label 4: this generator knows the classes 0 to 3"),
        (["--label", "-1"], "there is no class '-1'; allowed: 0, 1, 2, 3"),
        (["--label", "cat"], "there is no class 'cat'; allowed: 0, 1, 2, 3"),
        ([], "--label"),
        (["--label", "1", "--num", "0"], "'0' is not a whole number of at least 1"),
        (["--label", "1", "--guidance", "0.5"], "'0.5' is not a number of at least 1"),
        (["--label", "1", "--guidance", "nan"], "'nan' is not a number"),
        (["--label", "1", "--iterations", "5"], "between 1 and the 4 tokens, found 5"),
        (["--label", "1", "--out", "."], "is a directory; name a file in it"),
        (["--label", "1", "--out", "nowhere/x.png"], "the directory nowhere does not exist"),
        (["--label", "1", "--out", "grid"], "name a picture, for instance grid.png"),
        (["--label", "1", "--data", "nowhere"], "nowhere/autoencoder does not exist.*`train_ae`"),
    ],
    ids=lambda x: str(x)[:60],
)
def test_a_mistake_is_a_line(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = mistake("sample", "--out", "x.png", "--data", str(data), *options)
    assert re.search(said, line), line
    assert not list(tmp_path.iterdir())


def test_without_mar_the_stage_that_makes_it_is_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "autoencoder").symlink_to(data / "autoencoder")
    out = str(tmp_path / "x.png")
    line = mistake("sample", "--out", out, "--data", str(tmp_path), "--label", "1")
    assert "made by the stage `train_mar`" in line
