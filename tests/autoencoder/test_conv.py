"""The convolutional autoencoder: sizes, places, what it refuses."""

from pathlib import Path

import pytest
import torch

from flowprior.autoencoder.bottleneck import Codebooks
from flowprior.autoencoder.conv import ConvAutoencoder, build_autoencoder, widths_of
from flowprior.autoencoder.registry import ImageAutoencoder, autoencoder_from
from flowprior.autoencoder.shape import Shape
from flowprior.core import rng
from flowprior.core.trained import load_trained, save_trained

SHAPE = Shape(28, 1, 4, num_latents=49, latent_dim=4, width=8, depth=1, num_heads=1)
BOOKS = Codebooks(7, 16, 0.07)


def built(shape: Shape = SHAPE, bottleneck: str = "plain") -> ConvAutoencoder:
    with rng.scoped(0, "conv"):
        return build_autoencoder(shape, bottleneck, BOOKS)


@pytest.mark.parametrize("bottleneck", ["plain", "kl", "softvq"])
@pytest.mark.parametrize(
    "shape",
    [
        SHAPE,
        Shape(64, 3, 8, 64, 8, 6, 0, 1),
        Shape(8, 1, 1, 64, 2, 5, 2, 1),
    ],
)
def test_images_become_a_grid_of_latents_and_images_again(shape: Shape, bottleneck: str) -> None:
    model = built(shape, bottleneck) if shape.num_latents % 7 == 0 else built(shape, "plain")
    assert isinstance(model, ImageAutoencoder)
    images = torch.rand(3, shape.channels, shape.image_size, shape.image_size) * 2 - 1
    codes = model.encode(images)
    assert codes.latents.shape == (3, shape.num_latents, shape.latent_dim)
    restored, _ = model(images)
    assert restored.shape == images.shape
    (restored - images).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_latent_stands_at_its_place() -> None:
    """Row by row: what it changes in the image is around there."""
    model = built()
    latents = torch.zeros(1, 49, 4)
    plain = model.decode(latents)
    for place in (0, 10, 48):
        moved = latents.clone()
        moved[0, place] = 100.0
        # The mean and spread of a group move everywhere; what moves most is at the place.
        change = (model.decode(moved) - plain).abs()[0, 0]
        row, column = divmod(int(change.argmax()), 28)
        assert abs(row - (4 * (place // 7) + 1.5)) <= 6
        assert abs(column - (4 * (place % 7) + 1.5)) <= 6


def test_widths_double_up_to_four_times() -> None:
    assert widths_of(8, 0) == [8]
    assert widths_of(8, 3) == [8, 16, 32, 32]


def test_at_first_its_blocks_are_the_identity() -> None:
    deep, flat = built(SHAPE._replace(depth=3)), built(SHAPE._replace(depth=0))
    state = deep.state_dict()
    kept = [one for one in deep.encoder if type(one).__name__ != "ResidualBlock"]
    for own, theirs in zip(flat.encoder, kept, strict=True):
        own.load_state_dict(theirs.state_dict())
    flat.bottleneck.load_state_dict(deep.bottleneck.state_dict())
    images = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(deep.encode(images).latents, flat.encode(images).latents)
    assert len(state) > len(flat.state_dict())


def test_checkpointed_gradients_are_the_same() -> None:
    images = torch.rand(2, 1, 28, 28)
    found = []
    for again in (False, True):
        model = built().checkpoint_gradients(again)
        model(images)[0].square().mean().backward()
        found.append([p.grad for p in model.parameters()])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


def test_what_was_saved_is_built_from_its_config(tmp_path: Path) -> None:
    model = built()
    config = {"model": "conv", "shape": SHAPE._asdict(), "bottleneck": "plain", "options": {}}
    save_trained(tmp_path / "ae", "autoencoder", model, config, {"inputs": {}})
    trained = load_trained(tmp_path / "ae", "autoencoder", "a test")
    loaded = trained.build(autoencoder_from, tmp_path / "ae")
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(loaded.encode(images).latents, model.encode(images).latents)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, "must be a power of two, found 3"),
        ({"patch_size": 8}, "does not divide the image's 28 pixels"),
        ({"num_latents": 8}, "a latent for each 4 x 4 pixels, 49 of an image; .* is 8"),
    ],
)
def test_sizes_that_do_not_go_together_are_told(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(SHAPE._replace(**changes))


def test_it_learns_blobs() -> None:
    """In a few hundred steps, from 64 to 16 numbers an image."""
    model = built(Shape(8, 1, 4, 4, 4, 8, 1, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = rng.generator(0, "blobs")
    axis = torch.arange(8) + 0.5

    def blobs(n: int) -> torch.Tensor:
        y, x = 8 * torch.rand(2, n, 1, generator=draw)
        squared = (axis - y)[:, :, None] ** 2 + (axis - x)[:, None, :] ** 2
        return (2 * torch.exp(-squared / 4) - 1)[:, None]

    for _ in range(200):
        images = blobs(64)
        loss = (model(images)[0] - images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held_out = blobs(200)
    with torch.no_grad():
        error = (model(held_out)[0] - held_out).square().mean()
    assert float(error) < 0.1 * float(held_out.var())
