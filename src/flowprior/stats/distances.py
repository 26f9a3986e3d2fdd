"""How well a linear map keeps the distances between pairs of points."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Distortion(NamedTuple):
    """How evenly a map scales distances: spread of the ratio after / before over random pairs, divided by its mean.

    Attributes:
        std: Standard deviation; 0 means that all distances shrink alike.
        p05: 5% quantile.
        p95: 95% quantile.
        num_pairs: Pairs looked at.
    """

    std: float
    p05: float
    p95: float
    num_pairs: int


def pair_distortion(
    before: Float[Tensor, "n D"],
    after: Float[Tensor, "n d"],
    generator: torch.Generator,
    num_pairs: int = 20_000,
) -> Distortion:
    """Compare distances of random pairs of rows before and after; pairs that coincide before are left out.

    Raises:
        ValueError: All of them coincide, before or after.
    """
    a, b = torch.randint(len(before), (2, num_pairs), generator=generator)
    long = (before[a].double() - before[b].double()).norm(dim=-1)
    short = (after[a].double() - after[b].double()).norm(dim=-1)
    apart = long > 1e-9
    if not apart.any() or not short[apart].any():
        raise ValueError(
            "all vectors coincide, before or after the map: there is no distance to keep"
        )
    ratio = short[apart] / long[apart]
    ratio = ratio / ratio.mean()
    low, high = torch.quantile(ratio, torch.tensor([0.05, 0.95], dtype=ratio.dtype)).tolist()
    return Distortion(float(ratio.std()), low, high, len(ratio))
