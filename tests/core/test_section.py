"""Sections of the parameters are strict and stay as they are."""

from typing import Any

import pytest
from pydantic import ValidationError

from flowprior.core.section import Section


class Oven(Section):
    """A section."""

    degrees: float
    fan: bool


def test_a_section_holds_what_it_was_given() -> None:
    assert Oven(degrees=180, fan=True).degrees == 180


@pytest.mark.parametrize(
    "values",
    [
        {"degrees": "180", "fan": True},
        {"degrees": 180.0, "fan": 1},
        {"degrees": float("nan"), "fan": True},
        {"degrees": float("inf"), "fan": True},
        {"degrees": 180.0},
        {"degrees": 180.0, "fan": True, "light": True},
    ],
    ids=str,
)
def test_other_types_nan_infinity_absent_and_unknown_keys_are_errors(
    values: dict[str, Any],
) -> None:
    with pytest.raises(ValidationError):
        Oven(**values)


def test_a_section_cannot_be_changed() -> None:
    oven = Oven(degrees=180, fan=True)
    with pytest.raises(ValidationError, match="frozen"):
        oven.degrees = 200  # type: ignore[misc]
