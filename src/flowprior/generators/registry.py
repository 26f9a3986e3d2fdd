"""From the name of a generator to the generator."""

from collections.abc import Mapping
from typing import Any

from flowprior.generators.names import GENERATORS
from flowprior.generators.protocol import LatentShape


def build_generator(
    name: str, latents: LatentShape, settings: Any, options: Mapping[str, Any]
) -> Any:
    """An untrained generator; reads torch's global stream for its initialisation.

    Args:
        name: Of `flowprior.generators.names.GENERATORS`, or a plugin's: a class as in `generators.protocol`.
        latents: What it will generate.
        settings: The section `train_mar`.
        options: The section `generator`'s.
    """
    return GENERATORS.load(name).build(latents, settings, **options)


def generator_from(config: Mapping[str, Any]) -> Any:
    """A generator by its config (`model` and `sizes`); its weights are still to be loaded."""
    return GENERATORS.load(config["model"]).from_config(config["sizes"])
