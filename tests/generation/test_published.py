"""What the pipeline trained goes to the hub and comes from it."""

import shutil
from pathlib import Path

import pytest
import torch

from flowprior import Autoencoder, Generator
from flowprior.core.io import ArtifactError

from ..hub_server import Hub, hub  # noqa: F401
from .test_loaded import images
from .test_sampler import data  # noqa: F401

NAME = "them/digits"


def test_an_autoencoder_there_and_back(data: Path, hub: Hub) -> None:  # noqa: F811
    from huggingface_hub import ModelCard

    loaded = Autoencoder.load(data / "autoencoder")
    address = loaded.push_to_hub(NAME, source="digits of 8 x 8 pixels", license="bsd-3-clause")
    assert address.startswith(f"{hub.url}/{NAME}/commit/")
    back = Autoencoder.from_pretrained(NAME)
    assert torch.equal(back.encode(images()), loaded.encode(images()))
    card = ModelCard(hub.files(NAME)["README.md"].decode())
    assert card.data.license == "bsd-3-clause"
    assert "digits of 8 x 8 pixels" in card.text
    assert "| images | [1, 8, 8] |" in card.text
    assert "| latents | [4, 3], bottleneck" in card.text
    assert f"Autoencoder.from_pretrained('{NAME}')" in card.text


def test_a_generator_takes_its_autoencoder_along(data: Path, hub: Hub) -> None:  # noqa: F811
    from huggingface_hub import ModelCard

    loaded = Generator.load(data)
    loaded.push_to_hub(NAME, source="digits")
    assert set(hub.files(NAME)) == {
        "README.md",
        *(
            f"{part}/{name}"
            for part, kind in (("autoencoder", "autoencoder"), ("mar", "generator"))
            for name in ("config.json", "manifest.json", f"{kind}.safetensors")
        ),
    }
    draw = {"iterations": 2, "steps": 2}
    assert torch.equal(
        Generator.from_pretrained(NAME).sample([1, 2], **draw), loaded.sample([1, 2], **draw)
    )
    assert "| classes | 5: 0, 1, 2, 3, 4 |" in ModelCard(hub.files(NAME)["README.md"].decode()).text
    alone = Autoencoder.from_pretrained(NAME, subfolder="autoencoder")
    whole = Autoencoder.load(data / "autoencoder")
    assert torch.equal(alone.encode(images()), whole.encode(images()))


def test_a_folder_is_taken_as_it_is(data: Path, hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    shutil.copytree(data, tmp_path / "all" / "data")
    assert Generator.from_pretrained(tmp_path / "all", subfolder="data").num_classes == 5
    Autoencoder.from_pretrained(tmp_path / "all" / "data", subfolder="autoencoder")
    assert not hub.asked


def test_nothing_is_pushed_that_is_not_whole(data: Path, hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    own = shutil.copytree(data, tmp_path / "own")
    loaded = Generator.load(own)
    (own / "mar" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"config\.json has 2 bytes"):
        loaded.push_to_hub(NAME, source="digits")
    assert not hub.repositories
    hub.create("them/other")
    with pytest.raises(ValueError, match=r"holds no autoencoder/manifest\.json"):
        Generator.from_pretrained("them/other")
