"""Random batches depend on the step's generator alone, and are shared out."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from flowprior.core import rng
from flowprior.images.batches import random_batches
from flowprior.images.folder import ImageFolder

from .sources import SIZE, value_of, write_tree


def halves(rank: int) -> Callable[[Tensor], Tensor]:
    """The share of one of two ranks."""
    return lambda drawn: drawn.chunk(2)[rank]


def test_equal_generators_give_equal_batches_and_ranks_their_parts(tmp_path: Path) -> None:
    images = ImageFolder(write_tree(tmp_path, ["ant", "bee"], 10), "train", 0, SIZE)
    whole = random_batches(images, 6, False, lambda drawn: drawn)
    first, again, other = (whole(rng.generator(0, "step", step)) for step in (0, 0, 1))
    assert first.shape == (6, 3, SIZE, SIZE)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    parts = [
        random_batches(images, 6, False, halves(rank))(rng.generator(0, "step", 0))
        for rank in (0, 1)
    ]
    assert torch.equal(torch.cat(parts), first)


def test_batches_are_drawn_with_replacement_from_all_images(tmp_path: Path) -> None:
    images = ImageFolder(write_tree(tmp_path, ["ant"], 10), "train", 0, SIZE)
    load = random_batches(images, 200, False, lambda drawn: drawn)
    shades = [value_of(image) for image in load(rng.generator(0))]
    assert set(shades) == {value_of(image) for image in images.images(range(len(images)))}


def test_ranks_crop_as_one_rank_does(tmp_path: Path) -> None:
    """The crops are drawn for the global batch too."""
    images = ImageFolder(write_tree(tmp_path, ["ant", "bee"], 10), "train", 0, SIZE // 2)
    seen: list[Tensor] = []

    class Watched(ImageFolder):
        def images(self, rows: Tensor, crops: Tensor | None = None) -> Tensor:
            seen.append(crops)
            return super().images(rows, crops)

    images.__class__ = Watched
    random_batches(images, 6, True, lambda drawn: drawn)(rng.generator(0))
    for rank in (0, 1):
        random_batches(images, 6, True, halves(rank))(rng.generator(0))
    assert seen[0].shape == (6, 4)
    assert torch.equal(torch.cat(seen[1:]), seen[0])
