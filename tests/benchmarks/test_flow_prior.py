"""What sharing times between vectors saves: the flow prior's step and the alignment loss, each beside its plain twin.

Run with `make bench`. A ratio is plain seconds / grouped seconds, medians of interleaved rounds in one process.
"""

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowprior import rng
from flowprior.flow.losses import flow_matching_loss, grouped_loss
from flowprior.models.velocity import VelocityMLP

SIZES = {"digits": (4, 128, 2, 512, 32), "paper": (32, 1024, 6, 1024, 64)}
"""dim, width, depth, vectors, time groups."""


def plain_loss(velocity: VelocityMLP, vectors: Tensor, draw: torch.Generator) -> Tensor:
    """The textbook way: a time of its own, and so a modulation of its own, for every vector."""
    noise = rng.normal_like(vectors, draw)
    return flow_matching_loss(velocity, vectors, noise, torch.rand(len(vectors), generator=draw))


def side_by_side(
    plain: Callable[[], None], ours: Callable[[], None], rounds: int
) -> dict[str, float]:
    """Median seconds of both, measured in turns, and their ratio."""
    seconds: dict[str, list[float]] = {"plain_seconds": [], "seconds": []}
    for step in range(rounds + 1):
        for name, work in (("plain_seconds", plain), ("seconds", ours)):
            clock = time.perf_counter()
            work()
            if step:
                seconds[name].append(time.perf_counter() - clock)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return medians | {"ratio": medians["plain_seconds"] / medians["seconds"]}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("what", ["flow_prior_step", "alignment_loss"])
def test_shared_times(benchmark, size: str, what: str) -> None:
    dim, width, depth, n, groups = SIZES[size]
    with rng.scoped(0, "benchmark"):
        velocity = VelocityMLP(dim, width, depth)
    velocity.requires_grad_(what == "flow_prior_step")
    vectors = torch.randn(n, dim, generator=rng.generator(0)).requires_grad_(
        what == "alignment_loss"
    )

    def work(loss: Callable[[torch.Generator], Tensor]) -> Callable[[], None]:
        return lambda: loss(rng.generator(0, "draw")).mean().backward()

    plain = work(lambda draw: plain_loss(velocity, vectors, draw))
    ours = work(lambda draw: grouped_loss(velocity, vectors, groups, draw))
    found = side_by_side(plain, ours, rounds=15)
    benchmark.extra_info.update(found)
    benchmark.pedantic(ours, rounds=3)
    print(f"\n{what} ({size}): {found}")
