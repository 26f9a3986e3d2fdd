"""What every optimisation here shares: AdamW with weight decay where it belongs, the schedule, the moving average."""

import math
from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

Schedule = Literal["cosine", "constant"]


def adamw(
    module: nn.Module,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    undecayed: Collection[str] = (),
) -> torch.optim.AdamW:
    """AdamW over the parameters that learn; decay on tensors of two or more dims only.

    Args:
        module: What learns.
        lr: Learning rate.
        betas: Decays of the two moments.
        weight_decay: On tensors of two or more dims: not on biases and norms.
        undecayed: Names of parameters, or of submodules with all they hold, without decay as well;
            for instance tables of embeddings.

    Raises:
        ValueError: No parameter has such a name.
    """
    learning = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    for part in undecayed:
        if not any(_within(name, part) for name, _ in module.named_parameters()):
            raise ValueError(f"there is no parameter {part!r}, so it cannot be spared the decay")
    decayed = [
        p.ndim >= 2 and not any(_within(name, part) for part in undecayed) for name, p in learning
    ]
    groups = [
        {
            "params": [p for (_, p), chosen in zip(learning, decayed, strict=True) if chosen is on],
            "weight_decay": weight_decay if on else 0.0,
        }
        for on in (True, False)
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=True)


def _within(name: str, part: str) -> bool:
    """Whether a parameter is the named one, or in the submodule of that name."""
    return name == part or name.startswith(f"{part}.")


def schedule(
    optimizer: torch.optim.Optimizer,
    kind: Schedule,
    num_steps: int,
    warmup_steps: int,
    floor: float = 0.1,
) -> LambdaLR:
    """Linear warm-up, then constant, or a cosine down to `floor` times the peak at the last step."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if kind == "constant":
            return 1.0
        progress = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def ema_decay(step: int, decay: float) -> float:
    """The decay at an update: ramped from 0.1 as (1 + step) / (10 + step), at most `decay`.

    Without the ramp a run of a few thousand steps would still be averaging its initialisation.
    """
    return min(decay, (1 + step) / (10 + step))


def moving_average(module: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the module's parameters; call `.update_parameters(module)` each step."""

    def update(
        averages: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int
    ) -> None:
        weight = 1 - ema_decay(int(num_averaged), decay)
        torch._foreach_lerp_(list(averages), list(current), weight)

    averaged = AveragedModel(module, multi_avg_fn=update)
    for parameter in averaged.parameters():
        parameter.requires_grad_(False)
    return averaged
