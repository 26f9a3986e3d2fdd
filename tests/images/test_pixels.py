"""Images in [-1, 1] and images in bytes."""

import torch

from flowprior.images.pixels import from_uint8, to_uint8


def test_bytes_survive_a_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    images = from_uint8(levels)
    assert (float(images.min()), float(images.max())) == (-1.0, 1.0)
    assert torch.equal(to_uint8(images), levels)


def test_a_value_goes_to_the_nearest_level_and_none_beyond_the_ends() -> None:
    values = torch.tensor([-1.5, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5, 0.999, 7.0])
    assert to_uint8(values.view(1, 1, 1, 5)).flatten().tolist() == [0, 0, 1, 255, 255]
