"""Small pictures, a network in Inception's place, and references."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowprior.core import rng
from flowprior.evaluation.inception import Inception
from flowprior.evaluation.reference import Reference, open_reference
from flowprior.images.pixels import from_uint8

SIZE = 4
HELD_OUT = 9


def pictures(n: int, tag: str = "x") -> Tensor:
    """Fixed random bytes, [n, 3, 4, 4]."""
    draw = rng.generator(0, tag)
    return torch.randint(256, (n, 3, SIZE, SIZE), generator=draw).to(torch.uint8)


class HeldOut:
    """Images in memory, as `open_images` gives them."""

    labels = torch.zeros(HELD_OUT, dtype=torch.int64)
    num_classes = 1
    class_names = ("all",)
    channels = 3
    digest = "held out"

    def __init__(self) -> None:
        self.corrupt: dict[str, str] = {}

    def __len__(self) -> int:
        return HELD_OUT

    def images(self, rows: Any, crops: Tensor | None = None) -> Tensor:
        return from_uint8(pictures(HELD_OUT, "held out")[torch.as_tensor(rows)])


class Network(Inception):
    """In place of Inception: twelve numbers of an image."""

    sha256 = "s" * 64

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.seen += len(images)
        values = images.flatten(1)[:, :12].float() / 100
        return values, values

    def cache_key(self, images_digest: str) -> dict[str, object]:
        return {"images": images_digest, "weights": self.sha256}


def reference(path: Path | None = None) -> Reference:
    """Opened as the stage does."""
    return open_reference(None if path is None else str(path), HeldOut(), SIZE, 4)


def moments_of(images: Tensor) -> dict[str, np.ndarray]:
    """Mu and sigma as ADM writes them."""
    values = Network()(images)[0].double().numpy()
    return {"mu": values.mean(0), "sigma": np.cov(values.T)}
