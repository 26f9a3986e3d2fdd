"""Work: operations, memory and disk of one stage, and the reason where a part of it cannot be counted."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from flowprior.core.registry import PLUGINS
from flowprior.costs.flops import Cost, measure
from flowprior.costs.hardware import CHECKPOINT_BYTES, FROZEN_BYTES, Precision, num_parameters


class Work(NamedTuple):
    """What a stage does, as far as it costs.

    Attributes:
        disk_bytes: Size of its artifact.
        checkpoint_bytes: Size of what a killed run goes on from.
        learned: Modules that it trains, by name.
        frozen: Modules that it only asks, by name.
        num_steps: Number of steps; not whole where the last batch is not full.
        batch: Items of a step, over all GPUs.
        cost: What a step costs over all GPUs: operations in the mean over the steps, memory in the dearest.
        precision: Precision of a step.
        parts: Operations for each item of what a step, or the stage, consists of, by name.
        uncounted: What costs something that could not be counted, a line each that says why; all numbers are
            without it.
    """

    disk_bytes: float
    checkpoint_bytes: float = 0.0
    learned: Mapping[str, nn.Module] = {}
    frozen: Mapping[str, nn.Module] = {}
    num_steps: float = 0
    batch: int = 0
    cost: Cost = Cost(0, 0)
    precision: Precision = "fp32"
    parts: Mapping[str, float] = {}
    uncounted: tuple[str, ...] = ()


class UncountedError(Exception):
    """A plugin does something on the meta device that cannot be counted; the message names it and says why."""


@contextmanager
def counting_plugin(key: str, name: str) -> Iterator[None]:
    """Errors of a plugin become an `UncountedError`; errors of what is the package's own stay what they are.

    Args:
        key: The parameter that names it, for instance `align.objective`.
        name: The parameter's value.

    Raises:
        UncountedError: What the block raised, if it came from a plugin.
    """
    try:
        yield
    except Exception as error:  # whatever code of a user's own raises
        if not name.startswith(f"{PLUGINS}."):
            raise
        why = " ".join(str(error).split())
        raise UncountedError(f"{key} {name} ({type(error).__name__}: {why})") from error


def file_bytes(learned: Mapping[str, nn.Module], kept: nn.Module) -> tuple[int, int]:
    """Bytes of an artifact with the averaged weights of `kept`, and of a checkpoint of all that learns."""
    in_checkpoint = CHECKPOINT_BYTES * num_parameters(learned.values())
    return FROZEN_BYTES * num_parameters([kept]), in_checkpoint


def in_parts(part: Cost, accumulate: int) -> Cost:
    """The cost of a step of so many parts, one after the other."""
    return Cost(part.flops * accumulate, part.kept_bytes)


def forward_flops(run: Callable[[], object]) -> int:
    """Operations of a pass that nothing is learned from."""

    @torch.no_grad()
    def once() -> None:
        run()

    return measure(once).flops
