"""A set of images is encoded whole and in order, with mirror images where they are asked for."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from flowprior.autoencoder.encoding import Encoding, encode
from flowprior.core.device import start_accelerator
from flowprior.core.rng import generator

from .small import small


class Held:
    """Eleven images in memory, two of which could not be decoded."""

    labels = torch.zeros(11, dtype=torch.int64)
    num_classes = 1
    class_names = ("all",)
    channels = 3
    digest = "held"

    def __init__(self, *corrupt: str) -> None:
        self.corrupt = dict.fromkeys(corrupt, "not an image")
        self.pixels = torch.randn(11, 2, 8, 8, generator=generator(0, "held"))

    def __len__(self) -> int:
        return 11

    def images(self, rows: Sequence[int] | Tensor, crops: Tensor | None = None) -> Tensor:
        return self.pixels[torch.as_tensor(list(rows))]


def encoding(batch: int = 4, flip: bool = False, bottleneck: str = "plain") -> Encoding:
    """A small autoencoder at work."""
    return Encoding(small(bottleneck), start_accelerator(), batch, flip)


@pytest.mark.parametrize("batch", [1, 4, 11, 100])
def test_pieces_cover_the_set_in_order(batch: int) -> None:
    images = Held()
    pieces = list(encoding(batch).encoded(images, "test"))
    assert [row for rows, _ in pieces for row in rows] == list(range(11))
    with torch.no_grad():
        expected = small().encode(images.pixels).latents
    found = torch.cat([latents for _, latents in pieces])
    assert found.shape == (11, 1, 5, 3)
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-5, atol=1e-6)


def test_the_mirror_image_stands_behind_the_image() -> None:
    images = Held()
    ((_, latents),) = encoding(11, flip=True).encoded(images, "test")
    with torch.no_grad():
        model = small()
        both = model.encode(images.pixels).latents, model.encode(images.pixels.flip(-1)).latents
    torch.testing.assert_close(latents, torch.stack(both, 1), rtol=1e-5, atol=1e-6)
    assert not torch.equal(latents[:, 0], latents[:, 1])


def test_of_a_posterior_the_latents_are_the_mean_and_float32() -> None:
    images = Held().pixels
    found = encode(small("kl"), images, flip=False)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.equal(found[:, 0], small("kl").encode(images).mean.detach())


def test_images_come_back_as_the_autoencoder_restores_them() -> None:
    images = Held().pixels
    found = encoding().restored(images)
    with torch.no_grad():
        torch.testing.assert_close(found, small()(images)[0], rtol=1e-5, atol=1e-6)
    assert not found.requires_grad


def test_damaged_images_are_counted_once_over_all_sets() -> None:
    assert encoding().damaged(Held("a", "b"), Held("b", "c")) == 3
    assert encoding().damaged(Held()) == 0
