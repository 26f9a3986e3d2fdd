"""How a run is trained: how long, how it is optimised, and what can stop it."""

from typing import Literal, NamedTuple

from flowprior.core.optim import Schedule


class Optimizer(NamedTuple):
    """How a learner is optimised (AdamW).

    Attributes:
        lr: Peak learning rate.
        warmup_steps: Steps of linear warm-up.
        schedule: What follows.
        beta2: Second moment's decay; the first is 0.9.
        weight_decay: On tensors of two or more dims.
        max_grad_norm: Gradients are clipped to it.
        ema_decay: Decay of the weights' moving average.
        undecayed: Names of parameters or submodules without decay as well; see `optim.adamw`.
    """

    lr: float
    warmup_steps: int
    schedule: Schedule
    beta2: float
    weight_decay: float
    max_grad_norm: float
    ema_decay: float
    undecayed: tuple[str, ...] = ()


class Plan(NamedTuple):
    """How long a session runs and how often it looks up.

    Attributes:
        num_steps: Updates in all.
        log_steps: Updates between two rows of the training curve.
        checkpoint_steps: Updates between two checkpoints.
        precision: `fp32`, or `bf16` autocast.
        accumulate: Parts of a batch whose gradients are added up before an update; see `Session.parts`.
        compile: Whether learners' modules run through `torch.compile`.
    """

    num_steps: int
    log_steps: int
    checkpoint_steps: int
    precision: Literal["fp32", "bf16"]
    accumulate: int = 1
    compile: bool = False


class OtherCodeError(RuntimeError):
    """A checkpoint was made by other code, and `FLOWPRIOR_RESUME=strict` wants none of those."""


class NonFiniteError(RuntimeError):
    """A loss or gradient is NaN or infinite; the message names stage, step and the last good checkpoint."""
