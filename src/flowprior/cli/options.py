"""Numbers on the command line, checked as they are read."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer


def whole_number(least: int, help: str) -> Any:
    """An option that takes a whole number of at least `least`."""
    return typer.Option(
        parser=_reader(int, f"a whole number of at least {least}", lambda x: x >= least),
        metavar="N",
        help=help,
    )


def number(least: float | int, help: str) -> Any:
    """An option that takes a finite number of at least `least`."""
    return typer.Option(
        parser=_reader(float, f"a number of at least {least:g}", lambda x: x >= least),
        metavar="X",
        help=help,
    )


def positive_number(help: str) -> Any:
    """An option that takes a finite number above 0."""
    return typer.Option(
        parser=_reader(float, "a positive, finite number", lambda x: x > 0), metavar="X", help=help
    )


def share(help: str) -> Any:
    """An option that takes a number above 0 and at most 1."""
    return typer.Option(
        parser=_reader(float, "a share: above 0, at most 1", lambda x: 0 < x <= 1),
        metavar="X",
        help=help,
    )


@contextmanager
def told_as_options() -> Iterator[None]:
    """What the library says of an argument is said of the option that it came from.

    Raises:
        ValueError: Whatever the block raises, in the command's words.
    """
    try:
        yield
    except ValueError as error:
        said = str(error).replace("channel_dim", "--channel-dim").replace(" dim=", " --dim=")
        raise ValueError(said) from None


def _reader(
    kind: type[int] | type[float], expected: str, fits: Callable[[float], bool]
) -> Callable[[Any], int | float]:
    """What turns an option's text into a number.

    Args:
        kind: Of the number.
        expected: What numbers are allowed, in words.
        fits: Whether a finite number is allowed.
    """

    def read(text: Any) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and fits(value)):
            raise typer.BadParameter(f"{str(text)!r} is not {expected}")
        return value

    return read
