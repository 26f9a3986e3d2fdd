"""A module with its optimiser, schedule and moving average."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flowprior.core.optim import ema_decay
from flowprior.training.plan import NonFiniteError

from .runs import (
    OPTIMIZER,
    PLAN,
    Outcome,
    assert_equal,
    open_session,
    quiet,  # noqa: F401
    reset,
    train,
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What a run ends with that nobody disturbs."""
    return train(tmp_path_factory.mktemp("undisturbed"))


def test_the_average_follows_the_weights_by_the_ramped_decay(tmp_path: Path) -> None:
    """Replayed by hand: the first update copies, the others keep the share `ema_decay` of what was."""
    with open_session(tmp_path) as session:
        learner = session.learner("line", nn.Linear(3, 1), OPTIMIZER)
        average = None
        for step in session.steps():
            x = torch.randn(8, 3, generator=session.generator(step))
            learner.update(learner.module(x).square().mean())
            weight = learner.module.weight.detach()
            if average is None:
                average = weight.clone()
            else:
                average += (1 - ema_decay(step, OPTIMIZER.ema_decay)) * (weight - average)
    assert not any(p.requires_grad for p in learner.averaged.parameters())
    torch.testing.assert_close(learner.averaged.weight, average, rtol=1e-5, atol=1e-7)


def test_the_rate_warms_up_and_comes_down(tmp_path: Path) -> None:
    """To its peak after the warm-up and to a tenth of it at the end."""
    with open_session(tmp_path) as session:
        learner = session.learner("line", nn.Linear(3, 1), OPTIMIZER)
        rates = []
        for _ in session.steps():
            rates.append(learner.learning_rate)
            learner.update(learner.module(torch.ones(1, 3)).square().mean())
    assert rates[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert learner.learning_rate == pytest.approx(0.01)


def test_gradients_are_clipped_and_the_norm_before_is_returned(tmp_path: Path) -> None:
    """A loss a thousand times as large has a norm a thousand times as large and moves the weights alike."""
    moved, norms = [], []
    for factor in (1e3, 1e6):
        with open_session(tmp_path / str(factor)) as session:
            module = nn.Linear(3, 1)
            nn.init.ones_(module.weight)
            learner = session.learner("line", module, OPTIMIZER)
            norms.append(learner.update(factor * learner.module(torch.ones(1, 3)).sum()))
            moved.append(learner.module.weight.detach().clone())
    assert norms[1].item() == pytest.approx(1e3 * norms[0].item())
    assert norms[0].item() == pytest.approx(1e3 * 2)
    torch.testing.assert_close(moved[0], moved[1])


def test_bf16_autocasts_the_module_and_keeps_float32_weights(tmp_path: Path) -> None:
    """By the plan alone; losses of the outputs are float32 again."""
    reset()
    try:
        with open_session(tmp_path, plan=PLAN._replace(precision="bf16")) as session:
            learner = session.learner("line", nn.Linear(3, 1), OPTIMIZER)
            seen = []
            hook: Any = lambda module, inputs, output: seen.append(output.dtype)  # noqa: E731
            learner.module.register_forward_hook(hook)
            output = learner.module(torch.ones(1, 3))
            with session.autocast():
                inside = torch.ones(2, 2) @ torch.ones(2, 2)
            learner.update(output.square().mean())
            assert inside.dtype == torch.bfloat16
            assert output.dtype == torch.float32
            assert learner.module.weight.dtype == torch.float32
    finally:
        reset()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_module_trains_and_keeps_its_names(tmp_path: Path, undisturbed: Outcome) -> None:
    """Parameters are called what they are called; the run ends near one that is not compiled."""
    found = train(tmp_path, plan=PLAN._replace(compile=True))
    assert found.state["module"].keys() == undisturbed.state["module"].keys()
    torch.testing.assert_close(found.state["module"], undisturbed.state["module"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_is_changed_by_a_loss_that_is_not_finite(tmp_path: Path, value: float) -> None:
    """Neither weights nor averages nor the schedule."""
    with open_session(tmp_path) as session:
        learner = session.learner("line", nn.Linear(3, 1), OPTIMIZER)
        learner.update(learner.module(torch.ones(1, 3)).square().mean())
        before = pickle.loads(pickle.dumps(learner.state()))
        loss = learner.module(torch.ones(1, 3)).sum() * value
        with pytest.raises(NonFiniteError, match="the loss of the line is"):
            learner.update(loss)
        assert_equal(learner.state(), before)


def test_nothing_is_changed_by_a_gradient_that_is_not_finite(tmp_path: Path) -> None:
    """The loss itself may be a number: the root of zero has one, and no derivative."""
    with open_session(tmp_path) as session:
        learner = session.learner("line", nn.Linear(3, 1), OPTIMIZER)
        before = pickle.loads(pickle.dumps(learner.state()))
        loss = (0 * learner.module(torch.ones(1, 3))).abs().sqrt().sum()
        assert loss == 0
        with pytest.raises(NonFiniteError, match="the gradient norm of the line is nan at step 0"):
            learner.update(loss)
        assert_equal(learner.state(), before)
