"""Looks at the plugins that parameters name: whether each can be imported and takes what its room will call it with."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from flowprior.alignment.names import OBJECTIVES
from flowprior.autoencoder.names import AUTOENCODERS, BOTTLENECKS
from flowprior.config.presets import leaves
from flowprior.config.schema import Params
from flowprior.core.registry import PLUGINS, Registry, plugin_digests
from flowprior.encoders.names import ENCODERS
from flowprior.evaluation.names import JUDGES
from flowprior.features.names import SOURCES as FEATURES
from flowprior.generators.names import GENERATORS
from flowprior.images.names import SOURCES as IMAGES

REGISTRIES: dict[str, Registry] = {
    "images.source": IMAGES,
    "prior.source": FEATURES,
    "prior.encoder": ENCODERS,
    "autoencoder.model": AUTOENCODERS,
    "autoencoder.bottleneck": BOTTLENECKS,
    "align.objective": OBJECTIVES,
    "generator.model": GENERATORS,
    "evaluation.judge": JUDGES,
}
"""The registry of each parameter that names something that may be a user's own."""


def plugins_of(cfg: Params) -> Iterator[tuple[str, str]]:
    """Parameter and name of every plugin that the parameters name."""
    values = dict(leaves(cfg.model_dump(mode="json")))
    for key in REGISTRIES:
        if str(values[key]).startswith(f"{PLUGINS}."):
            yield key, values[key]


def check_plugin(cfg: Params, key: str, name: str) -> str:
    """Import a plugin and compare its signature with what it will be called with; what it is, in one line.

    Args:
        cfg: The parameters.
        key: A key of `REGISTRIES`.
        name: The plugin's name.

    Raises:
        ValueError: It lacks a method that its room calls, or takes other arguments.
        Exception: Whatever its module raises when it is imported.
    """
    plugin = REGISTRIES[key].load(name)
    for method, arguments, options in _calls(cfg, key):
        called = getattr(plugin, method, None) if method else plugin
        if not callable(called):
            raise ValueError(f"it has no {method or 'way to be called'}")
        _check_arguments(called, method or plugin.__name__, arguments, options)
    return f"{type(plugin).__name__} {plugin.__name__}, sha256 {plugin_digests(name)[name][:12]}"


def _calls(cfg: Params, key: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Methods that the room calls ("" is the plugin itself), with the number of arguments and the keywords."""
    images = dict.fromkeys(("path", "split_seed", "size", "max_corrupt"))
    encoder = dict.fromkeys(("size", "revision", "device"))
    match key:
        case "images.source":
            yield "", 1, images | cfg.images.options
        case "prior.source":
            yield "", 1, cfg.prior.options
        case "prior.encoder":
            yield "", 1, encoder
        case "autoencoder.model":
            yield "", 3, cfg.autoencoder.options
        case "autoencoder.bottleneck":
            yield "build", 4, {}
        case "align.objective":
            yield "build", 1, cfg.align.options
        case "generator.model":
            yield "build", 2, cfg.generator.options
            yield "from_config", 1, {}
        case "evaluation.judge":
            yield "build", 1, {}


def _check_arguments(
    called: Callable[..., Any], name: str, arguments: int, options: dict[str, Any]
) -> None:
    try:
        inspect.signature(called).bind(*[None] * arguments, **options)
    except TypeError as error:
        given = "".join(f", {option}=" for option in options)
        raise ValueError(
            f"{name} would be called with {arguments} argument{'s' * (arguments > 1)}{given}, but: {error}"
        ) from None
