"""What an accelerator can do, and what a model's parameters ask of its memory and of the disk."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from torch import nn

Precision = Literal["fp32", "bf16"]
LEARNED_BYTES = 20
"""Memory of a learned parameter: weight, gradient, two moments of Adam and moving average, each in float32."""
CHECKPOINT_BYTES = 16
"""A learned parameter in a checkpoint: weight, two moments and moving average."""
FROZEN_BYTES = 4
"""A parameter that is not learned, in memory or in an artifact."""
COPY_BYTES = 2
"""What autocast adds to any parameter: the copy in bf16 that the backward pass asks for."""


class Hardware(NamedTuple):
    """One accelerator.

    Attributes:
        bf16_flops: Dense peak of operations per second with bf16 operands.
        fp32_flops: The same with float32 operands; without TF32, which nothing here turns on.
        memory_bytes: Memory that can be used.
        utilisation: Share of the peak that is reached, above 0 and at most 1.
    """

    bf16_flops: float
    fp32_flops: float
    memory_bytes: float
    utilisation: float

    def hours(self, flops: float | int, precision: Precision) -> float:
        """How many hours one accelerator takes for so many operations."""
        peak = self.bf16_flops if precision == "bf16" else self.fp32_flops
        return flops / (peak * self.utilisation) / 3600


H100 = Hardware(bf16_flops=989e12, fp32_flops=67e12, memory_bytes=78 * 2**30, utilisation=0.4)
"""NVIDIA H100 SXM by its data sheet; a share of 0.4 is what transformers of this size reach."""


def num_parameters(modules: Iterable[nn.Module]) -> int:
    """The number of parameters in all modules; one that several share counts once."""
    return sum(p.numel() for p in {p for module in modules for p in module.parameters()})


def state_bytes(
    learned: Iterable[nn.Module], frozen: Iterable[nn.Module], precision: Precision = "fp32"
) -> int:
    """Memory of weights, gradients, moments and averages, and with bf16 of the weights' copies in it."""
    copies = COPY_BYTES if precision == "bf16" else 0
    of_learned, of_frozen = LEARNED_BYTES + copies, FROZEN_BYTES + copies
    return of_learned * num_parameters(learned) + of_frozen * num_parameters(frozen)
