"""Batches of targets and noise for the flow prior, where it is trained."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from flowprior.core.shards import Column
from flowprior.prior.fitting import KEPT_TARGETS


def targets_at_hand(
    targets: Column, device: torch.device
) -> Callable[[int, torch.Generator], Tensor]:
    """`Column.sample` of the targets [N, d], from a GPU's memory where they take up at most a quarter of what is free.

    To gather a step of the paper's size on a CPU takes as long as the step itself on an H100.
    """
    size = math.prod(targets.shape) * targets.dtype.itemsize
    if device.type != "cuda" or 4 * size > torch.cuda.mem_get_info(device)[0]:
        return targets.sample
    held = torch.cat([torch.tensor(block, device=device) for block in targets.blocks()])

    def sample(n: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(held), (n,), generator=generator)
        return held[rows.to(device)]

    return sample


def some_targets(targets: Column, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Targets that the prior keeps: all of a few, else about `KEPT_TARGETS` different ones, in their order."""
    if len(targets) <= KEPT_TARGETS:
        return torch.from_numpy(targets.read())
    rows = torch.randint(len(targets), (KEPT_TARGETS,), generator=generator).unique()
    return torch.from_numpy(targets.gather(rows.numpy()))


def draw_noise(
    shape: torch.Size, draw: torch.Generator, device: torch.device
) -> Float[Tensor, "n d"]:
    """N(0, I) from `draw`, or on a GPU from a generator there that starts from the seed of `draw`."""
    if device.type == "cuda":
        draw = torch.Generator(device).manual_seed(draw.initial_seed())
    return torch.randn(shape, generator=draw, device=device)
