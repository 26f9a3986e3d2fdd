"""The image grid: which images, where each stands, and what is written."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from flowprior.figures.grid import (
    GREY,
    LARGEST,
    by_class,
    by_row,
    first_of_each,
    pick,
    picture,
    save_sheet,
    tile,
)


def images(n: int, c: int = 1, h: int = 3, w: int = 2) -> Tensor:
    """Images in bytes, each of its own number."""
    return torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, c, h, w)


def numbers(grid: NDArray[np.uint8]) -> list[list[int]]:
    """The number of each image of a grid."""
    numbers: list[list[int]] = grid[:, :, 0, 0, 0].tolist()
    return numbers


def test_the_first_of_each_class_are_taken_in_order() -> None:
    labels = torch.tensor([1, 0, 1, 1, 0, 12, 0])
    assert first_of_each(labels, 2).tolist() == [0, 1, 2, 4, 5]


def test_images_are_picked_and_no_more_asked_for_than_needed() -> None:
    asked = []

    def pieces() -> Iterator[Tensor]:
        for piece in images(12).split(3):
            asked.append(len(piece))
            yield piece

    picked = pick(pieces(), torch.tensor([1, 2, 4, 7]))
    assert picked[:, 0, 0, 0].tolist() == [1, 2, 4, 7]
    assert len(asked) == 3


def test_rows_are_filled_one_after_the_other() -> None:
    assert numbers(by_row(images(5), 3)) == [[0, 1, 2], [3, 4, GREY]]
    assert by_row(images(0), 3).shape == (1, 3, 3, 2, 1)


def test_a_class_has_a_row_and_grey_where_it_has_too_few() -> None:
    labels = torch.tensor([2, 0, 2, 2, 11])
    grid = by_class(images(5), labels, 2)
    assert numbers(grid) == [[1, GREY], [0, 2], [4, GREY]]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_page_has_a_grey_line_around_each_image(channels: int) -> None:
    """The textbook loop over rows and columns."""
    grid = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, channels), dtype=np.uint8)
    page = np.full((2 * 5 + 1, 3 * 6 + 1, channels), GREY, dtype=np.uint8)
    for row in range(2):
        for column in range(3):
            top, left = row * 5 + 1, column * 6 + 1
            page[top : top + 4, left : left + 5] = grid[row, column]
    expected = page[..., 0] if channels == 1 else page
    assert np.array_equal(tile(grid), expected)
    assert np.array_equal(np.asarray(picture(grid)), expected)


def test_small_images_are_enlarged_by_a_whole_factor() -> None:
    grid = by_row(images(2, h=4, w=3), 2)
    assert picture(grid, smallest=10).size == (2 * (3 * 3 + 1) + 1, 3 * 4 + 2)
    assert picture(grid, smallest=2).size == picture(grid).size


def test_a_sheet_is_a_pixel_for_a_pixel_until_images_are_large(tmp_path: Path) -> None:
    small, large = by_row(images(4), 2), by_row(images(4, c=3, h=2 * LARGEST, w=2 * LARGEST), 2)
    for name, grid in (("small", small), ("large", large)):
        save_sheet(grid, tmp_path / f"deep/{name}.png")
    with Image.open(tmp_path / "deep/small.png") as page:
        assert np.array_equal(np.asarray(page), tile(small))
    with Image.open(tmp_path / "deep/large.png") as page:
        assert page.size == (130, 130)
        assert page.mode == "RGB"


def test_classes_that_have_no_image_take_no_row() -> None:
    """As where a few of ImageNet's dogs are held out."""
    labels = torch.tensor([153, 151, 153, 152, 153])
    assert first_of_each(labels, 2).tolist() == [0, 1, 2, 3]
    grid = by_class(images(5), labels, 2)
    assert grid.shape[:2] == (3, 2)
    assert (grid[0, 0] == images(5)[1].permute(1, 2, 0).numpy()).all()
    many = torch.arange(40).repeat_interleave(3)
    assert first_of_each(many, 2).tolist() == [i for j in range(10) for i in (3 * j, 3 * j + 1)]
