"""Labels in, images out: what the two training stages left is read, checked and put to use."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowprior.autoencoder.registry import autoencoder_from
from flowprior.core import rng
from flowprior.core.io import ArtifactError
from flowprior.core.trained import save_trained
from flowprior.generation.sampler import Sampler
from flowprior.generators.registry import generator_from
from flowprior.images.pixels import to_uint8

CPU = torch.device("cpu")
LATENTS = {"num_tokens": 4, "dim": 3, "num_classes": 5}
AUTOENCODER = {
    "model": "vit",
    "shape": {
        "image_size": 8,
        "channels": 1,
        "patch_size": 4,
        "num_latents": 4,
        "latent_dim": 3,
        "width": 16,
        "depth": 1,
        "num_heads": 2,
        "layer_scale": None,
    },
    "bottleneck": "plain",
    "codebooks": None,
    "options": {},
}
SIZES = {
    "shape": {
        **LATENTS,
        "width": 16,
        "encoder_depth": 1,
        "decoder_depth": 1,
        "num_heads": 2,
        "num_buffer": 2,
        "head_width": 16,
        "head_depth": 1,
        "dropout": 0.0,
    }
}
GENERATOR = {
    "model": "mar",
    "sizes": SIZES,
    "latents": LATENTS,
    "latents_mean": [0.1, -0.2, 0.3],
    "latents_std": 1.5,
}
STEPS: dict[str, Any] = {"num_iterations": 2, "head_steps": 2}


def models() -> tuple[nn.Module, nn.Module]:
    """Random ones, the same at every call; as initialised, a generator hardly looks at the class."""
    with rng.scoped(0, "models"):
        autoencoder, generator = autoencoder_from(AUTOENCODER), generator_from(GENERATOR)
        for parameter in generator.parameters():
            nn.init.normal_(parameter, std=0.3)
    return autoencoder, generator


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `data` after both training stages; nothing in it is changed."""
    folder = tmp_path_factory.mktemp("data")
    autoencoder, generator = models()
    inputs = {"images": "i", "held_out_images": "h", "targets": "t"}
    save_trained(
        folder / "autoencoder", "autoencoder", autoencoder, AUTOENCODER, {"inputs": inputs}
    )
    save_trained(folder / "mar", "generator", generator, GENERATOR, {"inputs": {"latents": "l"}})
    return folder


def draw(sampler: Sampler, scale: float = 1.0, tag: str = "draw") -> Tensor:
    """Images of five classes."""
    return sampler(torch.arange(5), rng.generator(0, tag), guidance_scale=scale, **STEPS)


def test_images_are_the_generators_tokens_scaled_back_and_decoded(data: Path) -> None:
    found = draw(Sampler(data, CPU))
    autoencoder, generator = models()
    with torch.no_grad():
        tokens = generator.eval().sample(torch.arange(5), rng.generator(0, "draw"), **STEPS)
        latents = tokens * 1.5 + torch.tensor([0.1, -0.2, 0.3])
        expected = to_uint8(autoencoder.eval().decode(latents))
    assert found.dtype == torch.uint8
    assert found.shape == (5, 1, 8, 8)
    assert torch.equal(found, expected)


def test_samples_depend_on_the_generator_and_the_scale_alone(data: Path) -> None:
    first = draw(Sampler(data, CPU))
    torch.rand(3)
    assert torch.equal(draw(Sampler(data, CPU)), first)
    assert not torch.equal(draw(Sampler(data, CPU), tag="other"), first)
    assert not torch.equal(draw(Sampler(data, CPU), scale=5.0), first)


def test_a_sampler_knows_what_it_was_made_from(data: Path) -> None:
    sampler = Sampler(data, CPU)
    assert set(sampler.inputs) == {"autoencoder", "generator"}
    assert all(len(digest) == 64 for digest in sampler.inputs.values())
    assert sampler.images == {"images": "i", "held_out_images": "h"}
    assert (sampler.num_classes, sampler.num_tokens) == (5, 4)


def test_bf16_changes_the_images_little(data: Path) -> None:
    exact, narrow = draw(Sampler(data, CPU)), draw(Sampler(data, CPU, "bf16"))
    assert narrow.dtype == torch.uint8
    assert (exact.int() - narrow.int()).abs().float().mean() < 4


@pytest.mark.parametrize(("missing", "stage"), [("autoencoder", "train_ae"), ("mar", "train_mar")])
def test_what_is_missing_is_told_with_the_stage_that_makes_it(
    data: Path, tmp_path: Path, missing: str, stage: str
) -> None:
    for name in {"autoencoder", "mar"} - {missing}:
        (tmp_path / name).symlink_to(data / name)
    with pytest.raises(ArtifactError, match=rf"{missing} does not exist; .*`{stage}`"):
        Sampler(tmp_path, CPU)
