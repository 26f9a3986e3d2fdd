"""Two ways to do the same, timed in turns in one process."""

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode


class Medians(NamedTuple):
    """Of interleaved rounds.

    Attributes:
        plain_seconds: The plain twin's.
        seconds: Ours.
        ratio: plain / ours.
        rounds: Of each.
    """

    plain_seconds: float
    seconds: float
    ratio: float
    rounds: int


def side_by_side(
    plain: Callable[[], Any], ours: Callable[[], Any], budget: float = 4.0, least: int = 3
) -> Medians:
    """Median seconds of both and their ratio; the first round of each is not counted.

    Args:
        plain: The textbook way.
        ours: The project's.
        budget: Seconds for both together, after the first round.
        least: Rounds, whatever they take.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    began = time.perf_counter()
    for step in range(10_000):
        for work, mine in zip((plain, ours), seconds, strict=True):
            clock = time.perf_counter()
            work()
            wait()
            if step:
                mine.append(time.perf_counter() - clock)
        if not step:
            began = time.perf_counter()
        if step >= least and time.perf_counter() - began > budget:
            break
    slow, fast = (statistics.median(mine) for mine in seconds)
    return Medians(slow, fast, slow / fast, len(seconds[0]))


class _Everything(nullcontext[None]):
    """In place of the counter's tracker of modules, which `torch.autograd.grad` cannot run under."""

    parents = ("Global",)


def flops_of(work: Callable[[], Any]) -> int:
    """Matrix operations of a call, by torch's counter."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _Everything()
    with counter:
        work()
    return int(counter.get_total_flops())


def matmul_rate(size: int, dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of a product of two square matrices, the best of some."""
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    best = 0.0
    for _ in range(8):
        wait()
        clock = time.perf_counter()
        a @ b
        wait()
        best = max(best, 2 * size**3 / (time.perf_counter() - clock))
    return best


def wait() -> None:
    """For the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
