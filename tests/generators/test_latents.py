"""Latents as generators learn them: normalised, with their labels, drawn by the generator alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowprior.core import rng
from flowprior.core.shard_writer import ShardWriter
from flowprior.core.shards import ShardReader
from flowprior.generators import latents as module
from flowprior.generators.latents import EVAL_DRAWS, LabelledLatents, held_out_loss
from flowprior.generators.protocol import LatentShape

IMAGES, TOKENS, DIM, CLASSES = 12, 3, 2, 4
MEAN, STD = [1.0, -2.0], 0.5
CPU = torch.device("cpu")


def values(images: int, views: int = 2) -> Any:
    """Latents [N, v, n, d], each of which tells its image, view, token and channel; exact in float16."""
    found = np.arange(images * views * TOKENS * DIM, dtype=np.float16)
    return found.reshape(images, views, TOKENS, DIM)


@pytest.fixture
def reader(tmp_path: Path) -> ShardReader:
    """What `encode_latents` leaves: images with their mirror images, in blocks of five."""
    writer = ShardWriter(tmp_path, rows_per_block=5)
    for split, images in (("train", IMAGES), ("validation", 7)):
        labels = np.arange(images, dtype=np.int64) % CLASSES
        writer.write(split, {"latents": values(images), "labels": labels})
    writer.close(kind="latents", provenance={}, num_classes=CLASSES, mean=MEAN, std=STD)
    return ShardReader.open(tmp_path, "latents", "the test")


def normalised(latents: Any) -> Tensor:
    """By hand."""
    return (torch.from_numpy(latents.astype(np.float32)) - torch.tensor(MEAN)) / STD


def test_rows_are_normalised_and_of_the_view_that_is_asked_for(reader: ShardReader) -> None:
    """The mean of each dim goes, one standard deviation for all; in the order asked for."""
    train = LabelledLatents(reader, "train")
    rows, views = torch.tensor([7, 0, 7]), torch.tensor([1, 0, 0])
    found = train.rows(rows, views)
    assert found.dtype == torch.float32
    assert torch.equal(found, normalised(values(IMAGES))[rows, views])


def test_the_shape_says_what_is_generated(reader: ShardReader) -> None:
    """Classes are those of the manifest: a split may lack one."""
    assert LabelledLatents(reader, "train").shape == LatentShape(TOKENS, DIM, CLASSES)
    assert len(LabelledLatents(reader, "validation").labels) == 7


def test_a_draw_is_of_the_generator_alone_with_the_labels_of_its_rows(reader: ShardReader) -> None:
    train = LabelledLatents(reader, "train")
    tokens, labels = train.draw(500, 0.0, rng.generator(0, "draw"))
    again, _ = train.draw(500, 0.0, rng.generator(0, "draw"))
    assert torch.equal(tokens, again)
    assert not torch.equal(tokens, train.draw(500, 0.0, rng.generator(1, "draw"))[0])
    place = (tokens * STD + torch.tensor(MEAN))[:, 0, 0] / (TOKENS * DIM)
    rows, views = place.long() // 2, place.long() % 2
    assert set(rows.tolist()) == set(range(IMAGES))
    assert set(views.tolist()) == {0, 1}
    assert torch.equal(labels, rows % CLASSES)


def test_a_share_of_the_labels_becomes_no_class_and_moves_no_row(reader: ShardReader) -> None:
    train = LabelledLatents(reader, "train")
    kept = train.draw(2000, 0.0, rng.generator(0))
    dropped = train.draw(2000, 0.25, rng.generator(0))
    assert torch.equal(dropped[0], kept[0])
    gone = dropped[1] == CLASSES
    assert float(gone.double().mean()) == pytest.approx(0.25, abs=0.04)
    assert torch.equal(dropped[1][~gone], kept[1][~gone])
    assert (train.draw(50, 1.0, rng.generator(0))[1] == CLASSES).all()


class Stub(nn.Module):
    """A generator whose loss is known, and which remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Tensor, Tensor, int | None]] = []

    def draw_batch(
        self, tokens: Tensor, labels: Tensor, generator: torch.Generator, num_draws: int | None
    ) -> "Drawn":
        self.asked.append((tokens, labels, num_draws))
        return Drawn([tokens, torch.rand((), generator=generator)])

    def forward(self, tokens: Tensor, draw: Tensor) -> Tensor:
        return tokens.mean() + draw


class Drawn(list[Tensor]):
    """A batch of the stub's."""

    def shared(self, share: Any) -> "Drawn":
        return Drawn(share(part, 0) for part in self)


def test_the_held_out_loss_is_the_mean_over_draws_of_unmirrored_images(reader: ShardReader) -> None:
    """With all labels, one draw of noise each time."""
    model, held_out = Stub(), LabelledLatents(reader, "validation")
    found = held_out_loss(model, held_out, 3, CPU)
    draws = [
        float(torch.rand((), generator=rng.generator(3, "train_mar", "eval", index)))
        for index in range(EVAL_DRAWS)
    ]
    expected = float(normalised(values(7))[:, 0].mean()) + sum(draws) / EVAL_DRAWS
    assert found == pytest.approx(expected, rel=1e-6)
    assert len(model.asked) == EVAL_DRAWS
    for tokens, labels, num_draws in model.asked:
        assert torch.equal(tokens, normalised(values(7))[:, 0])
        assert torch.equal(labels, held_out.labels)
        assert num_draws == 1


def test_the_held_out_loss_looks_at_no_more_images_than_its_bound(
    reader: ShardReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVAL_IMAGES", 4)
    model = Stub()
    held_out_loss(model, LabelledLatents(reader, "validation"), 0, CPU)
    assert {len(tokens) for tokens, _, _ in model.asked} == {4}


def test_the_held_out_loss_depends_on_the_seed_alone(reader: ShardReader) -> None:
    held_out = LabelledLatents(reader, "validation")
    first = held_out_loss(Stub(), held_out, 0, CPU)
    torch.rand(3)
    assert held_out_loss(Stub(), held_out, 0, CPU) == first
    assert held_out_loss(Stub(), held_out, 1, CPU) != first
