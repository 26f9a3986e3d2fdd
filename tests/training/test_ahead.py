"""Batches made ahead are those that would have been made in time."""

import threading
from pathlib import Path

import pytest
import torch

from flowprior.training.ahead import Ahead
from flowprior.training.plan import Plan
from flowprior.training.session import Session


def session(root: Path, steps: int = 4, accumulate: int = 1) -> Session:
    plan = Plan(steps, 1, 100, "fp32", accumulate)
    return Session("ahead", config={}, inputs={}, seed=3, plan=plan, root=root)


@pytest.fixture(autouse=True)
def _no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWPRIOR_MLFLOW", "off")


@pytest.mark.parametrize(("accumulate", "threaded"), [(1, True), (3, True), (3, False)])
def test_batches_and_generators_are_those_of_the_step_and_part(
    tmp_path: Path, accumulate: int, threaded: bool
) -> None:
    """Each is made once, none beyond the last step."""
    made = []

    def make(draw: torch.Generator) -> torch.Tensor:
        made.append(torch.rand(2, generator=draw))
        return made[-1]

    with session(tmp_path, accumulate=accumulate) as running:
        ahead = Ahead(running, make, threaded)
        for step in running.steps():
            for part in running.parts():
                batch, draw = ahead(step)
                expected = running.generator("step", step)
                assert torch.equal(batch, torch.rand(2, generator=expected)), (step, part)
                assert torch.equal(torch.rand(3, generator=draw), torch.rand(3, generator=expected))
    assert len(made) == 4 * accumulate


def test_the_next_batch_is_made_while_the_present_one_is_used(tmp_path: Path) -> None:
    seen = threading.Semaphore(0)

    def make(_: torch.Generator) -> int:
        seen.release()
        return 0

    with session(tmp_path, steps=2) as running:
        ahead = Ahead(running, make)
        for step in running.steps():
            ahead(step)
            assert seen.acquire(timeout=10)
            if step == 0:
                assert seen.acquire(timeout=10)
                seen.release()


def test_an_error_of_the_thread_reaches_the_loop(tmp_path: Path) -> None:
    def make(_: torch.Generator) -> int:
        raise ValueError("no such image")

    with session(tmp_path) as running:
        ahead = Ahead(running, make)
        with pytest.raises(ValueError, match="no such image"):
            ahead(0)
