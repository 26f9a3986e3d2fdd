"""What the pipeline trained, in one's own code."""

from pathlib import Path

import pytest
import torch

from flowprior import Autoencoder, Generator
from flowprior.core import rng
from flowprior.core.io import ArtifactError
from flowprior.generation.sampler import Sampler

from .test_sampler import data, models  # noqa: F401


def images() -> torch.Tensor:
    """Bytes."""
    return torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=rng.generator(0, "i"))


def test_images_go_to_latents_and_back(data: Path) -> None:  # noqa: F811
    """As the module itself does it; bytes and numbers are the same images."""
    loaded = Autoencoder.load(data / "autoencoder")
    module = models()[0].eval()
    latents = loaded.encode(images())
    assert latents.shape == (3, 4, 3)
    scaled = images().float() / 127.5 - 1
    with torch.no_grad():
        torch.testing.assert_close(latents, module.encode(scaled).mean)
    assert torch.equal(loaded.encode(scaled), latents)
    restored = loaded.decode(latents)
    assert restored.shape == (3, 1, 8, 8)
    assert float(restored.abs().max()) <= 1


def test_labels_become_images_as_the_pipeline_draws_them(data: Path) -> None:  # noqa: F811
    generator = Generator.load(data)
    labels = [0, 3, 3]
    drawn = generator.sample(labels, guidance=2.0, iterations=2, steps=2)
    assert drawn.shape == (3, 1, 8, 8)
    assert drawn.dtype == torch.uint8
    same = Sampler(data, torch.device("cpu"))(
        torch.tensor(labels),
        rng.generator(0, "sample", 0),
        num_iterations=2,
        head_steps=2,
        guidance_scale=2.0,
    )
    assert torch.equal(drawn, same)
    other = generator.sample(labels, guidance=2.0, iterations=2, steps=2, seed=1)
    assert not torch.equal(drawn, other)


def test_what_cannot_be_is_an_error(data: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(ArtifactError, match="the stage `train_ae`"):
        Autoencoder.load(tmp_path / "none")
    with pytest.raises(ArtifactError, match="does not exist"):
        Generator.load(tmp_path)
    with pytest.raises(ValueError, match="label 5: this generator knows the classes 0 to 4"):
        Generator.load(data).sample([1, 5])
    loaded = Autoencoder.load(data / "autoencoder")
    with pytest.raises(ValueError, match=r"images must be \[b, c, H, W\], found \[8, 8\]"):
        loaded.encode(torch.zeros(8, 8))
    with pytest.raises(ValueError, match=r"bytes, or numbers in \[-1, 1\]"):
        loaded.encode(images().float())


def test_classes_are_asked_for_by_name_or_number(data: Path, tmp_path: Path) -> None:  # noqa: F811
    """A name comes first: a class may be called by a number that is not its own."""
    generator = Generator.load(data)
    assert generator.class_names == ("0", "1", "2", "3", "4")
    generator.class_names = ("Ankle boot", "bag", "Bag", "7", "coat")
    numbers = {"Ankle boot": 0, "ankle BOOT": 0, "bag": 1, "Bag": 2, "7": 3, "4": 4, 4: 4, 3: 3}
    assert {label: generator.number_of(label) for label in numbers} == numbers
    assert generator.number_of(torch.tensor(2)) == 2
    with pytest.raises(ValueError, match=r"no class 'boot'; .* did you mean 'Ankle boot'"):
        generator.number_of("boot")
    with pytest.raises(ValueError, match="there is no class 'BAG'"):
        generator.number_of("BAG")
    with pytest.raises(ValueError, match="label 5: this generator knows the classes 0 to 4"):
        generator.number_of("5")
    draw = {"iterations": 2, "steps": 2}
    drawn = generator.sample(["coat", 0], **draw)
    assert torch.equal(drawn, generator.sample(torch.tensor([4, 0]), **draw))
