"""What the benchmarks are timed with."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch

from .benchmarks import side_by_side as timing

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, which work adds to."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def taking(clock: list[float], seconds: Iterator[float], name: str, order: list[str]):
    """Work that takes so long at each call."""

    def work() -> None:
        order.append(name)
        clock[0] += next(seconds)

    return work


def test_two_ways_take_turns_and_the_first_round_is_not_counted(clock: list[float]) -> None:
    order: list[str] = []
    plain = taking(clock, iter([100.0, 2.0, 4.0, 2.0]), "plain", order)
    ours = taking(clock, iter([100.0, 1.0, 1.0, 9.0]), "ours", order)
    medians = timing.side_by_side(plain, ours, budget=0.0, least=3)
    assert order == ["plain", "ours"] * 4
    assert medians == timing.Medians(plain_seconds=2.0, seconds=1.0, ratio=2.0, rounds=3)


def test_rounds_end_with_the_budget(clock: list[float]) -> None:
    plain, ours = (taking(clock, (1.0 for _ in count()), "", []) for _ in range(2))
    assert timing.side_by_side(plain, ours, budget=19.0, least=3).rounds == 10


def test_operations_are_those_of_the_products() -> None:
    """Of the gradient's as well, also where `torch.autograd.grad` takes it of a module."""
    layer = torch.nn.Linear(5, 7, bias=False)
    x = torch.ones(3, 5, requires_grad=True)
    forward = 2 * 3 * 5 * 7
    assert timing.flops_of(lambda: layer(x)) == forward
    assert timing.flops_of(lambda: torch.autograd.grad(layer(x).sum(), x)) == 2 * forward


@pytest.mark.slow
def test_benchmarks_do_not_time_the_checks_of_types() -> None:
    """Whoever forgets to turn them off is told how."""
    command = [sys.executable, "-m", "pytest", "tests/benchmarks", "--benchmark-only", "-q"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "make bench" in done.stdout + done.stderr
