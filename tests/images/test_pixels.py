"""Images in [-1, 1] and images in bytes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowprior.images.pixels import from_uint8, to_uint8

PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)


def test_bytes_survive_a_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    images = from_uint8(levels)
    assert (float(images.min()), float(images.max())) == (-1.0, 1.0)
    assert torch.equal(to_uint8(images), levels)


def test_every_byte_survives_the_way_there_and_back() -> None:
    """The level k stands for k / 127.5 - 1, as images are decoded."""
    levels = torch.arange(256).view(1, 1, 16, 16)
    found = to_uint8(levels.float() / 127.5 - 1)
    assert found.dtype == torch.uint8
    assert torch.equal(found, levels.to(torch.uint8))


@PROPERTY
@given(value=st.floats(-1, 1, width=32))
def test_values_are_rounded_to_the_nearest_level(value: float) -> None:
    """At most half a level away, not cut off below."""
    found = to_uint8(torch.full((1, 1, 1, 1), value)).item()
    # (x + 1) * 127.5 in float32 is off by at most 2e-5 levels.
    assert abs(found - (value + 1) * 127.5) <= 0.5 + 1e-4


@pytest.mark.parametrize(("value", "byte"), [(-7.0, 0), (-1.0, 0), (1.0, 255), (7.0, 255)])
def test_values_beyond_the_range_are_clamped(value: float, byte: int) -> None:
    """They do not wrap around."""
    assert to_uint8(torch.full((1, 1, 1, 1), value)).item() == byte
