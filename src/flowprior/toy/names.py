"""Names of the two-dimensional targets; no torch, so that parameters are checked before it is imported."""

from typing import Literal, get_args

TargetName = Literal["mixture", "grid", "moons", "rings", "spiral", "swiss_roll"]
ExactTargetName = Literal["mixture", "grid"]
"""Targets with a density in closed form."""
TARGETS: tuple[TargetName, ...] = get_args(TargetName)
