"""Latents with labels, as generators learn them."""

from typing import Any

import torch
from torch import Tensor

from flowprior.core import rng
from flowprior.core.shards import Column, ShardReader
from flowprior.generators.protocol import LatentShape

EVAL_DRAWS = 8
EVAL_IMAGES = 2000
TAG = "train_mar"
"""Of the random draws, which come from (seed, tag, purpose)."""


class LabelledLatents:
    """One split of the latents with labels, normalised: mean of each dim removed, divided by one standard deviation.

    Args:
        latents: Shards of `encode_latents`.
        split: `train` or `validation`.

    Attributes:
        latents: Of images and their mirror images, [N, 1 or 2, n, d].
        labels: Classes, [N].
        shape: What a generator generates.
    """

    def __init__(self, latents: ShardReader, split: str) -> None:
        self.latents: Column = latents.column(split, "latents")
        self.labels = torch.from_numpy(latents.column(split, "labels").read())
        num_tokens, dim = self.latents.shape[2:]
        self.shape = LatentShape(num_tokens, dim, latents.manifest["num_classes"])
        self._mean = torch.tensor(latents.manifest["mean"])
        self._std = float(latents.manifest["std"])

    def rows(self, rows: Tensor, views: Tensor) -> Tensor:
        """Tokens [b, n, d] of the given rows and views (0 the image, 1 its mirror image)."""
        picked = torch.from_numpy(self.latents.gather(rows.numpy())).float()
        return (picked[torch.arange(len(rows)), views] - self._mean) / self._std

    def draw(
        self, batch: int, label_dropout: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Tokens [b, n, d] and labels [b] of random rows and views; a share of the labels becomes "no class"."""
        rows = torch.randint(len(self.labels), (batch,), generator=generator)
        views = torch.randint(self.latents.shape[1], (batch,), generator=generator)
        tokens, labels = self.rows(rows, views), self.labels[rows]
        dropped = torch.rand(len(labels), generator=generator) < label_dropout
        return tokens, labels.masked_fill(dropped, self.shape.num_classes)


@torch.no_grad()
def held_out_loss(model: Any, held_out: LabelledLatents, seed: int, device: torch.device) -> float:
    """The training loss on held-out latents, without dropout, averaged over a few draws of `draw_batch`.

    Args:
        model: A generator on the device, in eval mode.
        held_out: At most `EVAL_IMAGES` of its first images are taken, unmirrored.
        seed: Of the run.
        device: Where the model is.
    """
    some = torch.arange(min(len(held_out.labels), EVAL_IMAGES))
    tokens, labels = held_out.rows(some, torch.zeros_like(some)), held_out.labels[some]
    losses = []
    for index in range(EVAL_DRAWS):
        draw = rng.generator(seed, TAG, "eval", index)
        batch = model.draw_batch(tokens, labels, draw, num_draws=1)
        losses.append(float(model(*batch.shared(lambda part, _: part.to(device)))))
    return sum(losses) / len(losses)
