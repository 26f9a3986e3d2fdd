"""From a name to a generator, and again from its config."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flowprior.config.presets import resolve
from flowprior.core import rng
from flowprior.generators.protocol import Generator, LatentShape
from flowprior.generators.registry import build_generator, generator_from
from flowprior.mar.model import MAR

from ..config.committed import ROOT, tree

LATENTS = LatentShape(8, 4, 10)


def test_mar_is_a_generator_and_is_built_again_from_its_config() -> None:
    settings = resolve(ROOT, tree("smoke")).params.train_mar
    with rng.scoped(0):
        model = build_generator("mar", LATENTS, settings, {})
    assert type(model) is MAR
    assert isinstance(model, Generator)
    again = generator_from({"model": "mar", "sizes": model.config})
    again.load_state_dict(model.state_dict())
    labels = torch.tensor([0, 3])
    options = {"num_iterations": 2, "head_steps": 2}
    one, two = (each.eval().sample(labels, rng.generator(0), **options) for each in (model, again))
    assert one.shape == (2, 8, 4)
    assert torch.equal(one, two)


OWN = """
from torch import nn

class Own(nn.Module):
    def __init__(self, tokens, depth):
        super().__init__()
        self.config = {"tokens": tokens, "depth": depth}

    @classmethod
    def build(cls, latents, settings, *, depth=1):
        return cls(latents.num_tokens, depth)

    @classmethod
    def from_config(cls, config):
        return cls(**config)
"""


def test_a_generator_of_ones_own_is_built_with_its_options_and_again_from_its_config(
    write_plugin: Callable[..., Path],
) -> None:
    write_plugin("generators", OWN)
    name = "plugins.generators.own:Own"
    model = build_generator(name, LATENTS, None, {"depth": 5})
    assert model.config == {"tokens": 8, "depth": 5}
    assert generator_from({"model": name, "sizes": model.config}).config == model.config


def test_an_unknown_generator_is_told_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"found 'maar', allowed: mar; did you mean 'mar'"):
        build_generator("maar", LATENTS, None, {})
