"""A run of eleven steps that fits a line: interrupted, poisoned or left in peace."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn

from flowprior.core import rng
from flowprior.training import session as session_module
from flowprior.training.plan import Optimizer, Plan
from flowprior.training.session import Session

STEPS = 11
PLAN = Plan(num_steps=STEPS, log_steps=4, checkpoint_steps=3, precision="fp32")
"""Rows end after steps 4, 8 and 11, checkpoints after 3, 6, 9 and 11: a resumed row has parts of two runs."""


OPTIMIZER = Optimizer(
    lr=0.1,
    warmup_steps=3,
    schedule="cosine",
    beta2=0.95,
    weight_decay=0.1,
    max_grad_norm=1.0,
    ema_decay=0.5,
)
CONFIG = {"width": 3}
PLACES = ("before the update", "before the log", "after the log")


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """No tracking, no GPU (on which results are not bit-identical), and accelerate's global state as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWPRIOR_MLFLOW", "off")
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(
            session_module, "commit", lambda: "c0ffee"
        )  # git is not asked at every session
        reset()
        yield
    reset()


def reset() -> None:
    """Forget accelerate's state, which else keeps the precision of the first session of a process."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


class Outcome(NamedTuple):
    """What a run leaves."""

    state: dict[str, Any]
    curves: dict[str, list[dict[str, float]]]
    steps: list[int]
    started_at_step: int
    folder: Path
    began_at: str | None = None


def open_session(root: Path, stage: str = "toy", **changes: Any) -> Session:
    """A session of the tests; `changes` are to its arguments."""
    arguments: dict[str, Any] = {"config": CONFIG, "inputs": {"data": "d"}, "seed": 0, "plan": PLAN}
    return Session(stage, root=root, **arguments | changes)


def train(
    root: Path,
    kill: int | None = None,
    place: str = PLACES[0],
    poison: int | None = None,
    **changes: Any,
) -> Outcome:
    """Fit a line, with a second curve every other step; interrupted or poisoned at a step if asked for."""

    def maybe_kill(step: int, here: str) -> None:
        if step == kill and place == here:
            raise KeyboardInterrupt

    with open_session(root, **changes) as session:
        with rng.scoped(session.seed, "init"):
            module = nn.Linear(3, 1)
        learner = session.learner("line", module, OPTIMIZER)
        steps = []
        for step in session.steps():
            steps.append(step)
            draw = session.generator("step", step)
            x = torch.randn(8, 3, generator=draw)
            loss = (learner.module(session.share(x)) - x.sum(-1, keepdim=True)).square().mean()
            if step == poison:
                loss = loss * torch.nan
            maybe_kill(step, PLACES[0])
            norm = learner.update(loss)
            maybe_kill(step, PLACES[1])
            session.log(step, loss=loss, grad_norm=norm)
            if step % 2:
                session.record("looks", step + 1, {"bias": float(learner.averaged.bias)})
            maybe_kill(step, PLACES[2])
        return Outcome(
            learner.state(),
            session.curves,
            steps,
            session.started_at_step,
            session.folder,
            session.began_at,
        )


def assert_equal(one: Any, two: Any, where: str = "state") -> None:
    """Nested containers are the same, tensors to the bit."""
    if isinstance(one, Tensor):
        assert isinstance(two, Tensor), where
        assert one.dtype == two.dtype, where
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_equal(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_equal(a, b, f"{where}[{i}]")
    else:
        assert one == two, where


def assert_same(one: Outcome, two: Outcome) -> None:
    """Two runs ended alike: weights, averages, optimiser, schedule and curves."""
    assert_equal(one.state, two.state)
    assert one.curves == two.curves
