"""What decides whether a result or a checkpoint is old: the version of each stage's behaviour, and parameters.

A stage's version is raised when the same inputs and parameters give other results than before, and for nothing else;
`tests/behaviour` holds what each version does and fails when a stage does something else.
"""

from collections.abc import Mapping
from typing import Any

VERSIONS: dict[str, int] = {
    "extract_features": 1,
    "project": 1,
    "train_flow": 2,
    "train_ae": 1,
    "encode_latents": 2,
    "train_mar": 1,
    "sample_eval": 1,
}
"""Of every stage."""

NEUTRAL: dict[str, Any] = {
    "images.options": {},
    "images.channels": None,
    "images.shards": None,
    "images.held_out": None,
    "prior.options": {},
    "autoencoder.model": "vit",
    "autoencoder.options": {},
    "align.options": {},
    "generator.model": "mar",
    "generator.options": {},
}
"""Parameters that were added since results exist, with the value that stands for what was done before.

Lines are only ever added. A result or checkpoint that lacks a parameter counts as made with this value.
"""


PLACES = ("images.path",)
"""Parameters that say where something lies: what lies there decides, by its digest."""


def without_neutral(config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by section, without places and those at their neutral value; equal for equal behaviour, old or new.

    Args:
        config: As `Params.tracked` gives it.
    """
    kept: dict[str, Any] = {}
    for section, values in config.items():
        if not isinstance(values, Mapping):
            kept[section] = values
            continue
        rest = {
            name: value
            for name, value in values.items()
            if f"{section}.{name}" not in PLACES
            and NEUTRAL.get(f"{section}.{name}", _ABSENT) != value
        }
        if rest:
            kept[section] = rest
    return kept


_ABSENT = object()
