"""From a config to the autoencoder that it describes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flowprior.autoencoder.config import Autoencoder as Choice
from flowprior.autoencoder.names import BOTTLENECKS
from flowprior.autoencoder.registry import ImageAutoencoder, autoencoder_from
from flowprior.autoencoder.setup import autoencoder_config, build_trainee
from flowprior.config.presets import resolve
from flowprior.core import rng
from flowprior.core.trained import Trained

from ..config.committed import ROOT, tree
from .small import CODEBOOKS, SMALL, normal, small


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_a_config_rebuilds_the_model_that_it_describes(bottleneck: str) -> None:
    """The weights of one fit the other and give the same image."""
    model = small(bottleneck)
    with rng.scoped(1):
        config = {"shape": SMALL._asdict(), "bottleneck": bottleneck}
        config["codebooks"] = CODEBOOKS._asdict() if bottleneck == "softvq" else None
        rebuilt = autoencoder_from(config).eval()
    rebuilt.load_state_dict(model.state_dict())
    images = normal(2, 2, 8, 8)
    assert torch.equal(rebuilt(images)[0], model(images)[0])


OWN = """
import torch
from torch import nn
from flowprior.core.codes import Codes

class Means(nn.Module):
    def __init__(self, shape, bottleneck, codebooks, *, gain):
        super().__init__()
        self.shape, self.gain = shape, gain
        self.bottleneck = nn.Linear(shape.channels, shape.num_latents * shape.latent_dim)
        self.output = nn.Linear(shape.num_latents * shape.latent_dim, shape.channels)

    @property
    def last_layer(self):
        return self.output.weight

    def encode(self, images, noise=None):
        latents = self.bottleneck(images.mean((2, 3))).unflatten(1, (self.shape.num_latents, -1))
        return Codes(latents, latents, None)

    def decode(self, latents):
        shades = self.gain * self.output(latents.flatten(1))
        return shades[:, :, None, None].expand(-1, -1, self.shape.image_size, self.shape.image_size)

    def forward(self, images, noise=None):
        codes = self.encode(images, noise)
        return self.decode(codes.latents), codes
"""


def test_an_autoencoder_of_ones_own_is_built_with_its_options(
    write_plugin: Callable[..., Path],
) -> None:
    """From the config that `train_ae` writes, and again by the stages behind it; and it is trained like any other."""
    write_plugin("autoencoder", OWN)
    settings = resolve(ROOT, tree("smoke")).params.train_ae
    choice = Choice(model="plugins.autoencoder.own:Means", bottleneck="plain", options={"gain": 2})
    config = autoencoder_config(choice, settings, image_size=8, channels=1, latent_dim=4)
    trainee = build_trainee(config, settings, None, None, 0)
    model = trainee.autoencoder
    assert isinstance(model, ImageAutoencoder)
    assert model.gain == 2
    restored, codes, disagreement = trainee(normal(3, 1, 8, 8))
    assert restored.shape == (3, 1, 8, 8)
    assert codes.latents.shape == (3, settings.num_latents, 4)
    assert disagreement is None
    trained = Trained(config, model.state_dict(), "digest", {})
    rebuilt = trained.build(autoencoder_from, Path("ae"))
    assert torch.equal(rebuilt(normal(3, 1, 8, 8))[0], restored)


def test_an_unknown_autoencoder_is_told_with_those_that_there_are() -> None:
    config = {"model": "vti", "shape": SMALL._asdict(), "bottleneck": "plain"}
    with pytest.raises(ValueError, match=r"found 'vti', allowed: conv, vit; did you mean 'vit'"):
        autoencoder_from(config)
