"""Randomness without global state: every draw comes from (seed, tags), whatever ran before it."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor


def _alone(batch: Tensor, dim: int = 0) -> Tensor:
    """The share of a process that is alone, and what it gathers."""
    return batch


class Draw(NamedTuple):
    """Randomness for the global batch, so that a result does not depend on the number of ranks.

    Attributes:
        generator: Equal on all ranks.
        batch: Rows of the global batch, the first axis of the latents.
        share: `share(draws, dim)` gives this rank's part of what was drawn for all, on its device.
        gather: The rows of all ranks, with a gradient that reaches this rank's own.
    """

    generator: torch.Generator
    batch: int
    share: Callable[[Tensor, int], Tensor] = _alone
    gather: Callable[[Tensor], Tensor] = _alone


def derive_seed(seed: int, *tags: str | int) -> int:
    """A 63-bit seed for one purpose, for instance `derive_seed(0, "train_flow", "noise", step)`."""
    key = "/".join([str(seed), *map(str, tags)])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *tags: str | int) -> torch.Generator:
    """A fresh CPU generator for one purpose; equal arguments give equal draws on every machine."""
    return torch.Generator().manual_seed(derive_seed(seed, *tags))


def generator_on(device: torch.device, seed: int, *tags: str | int) -> torch.Generator:
    """As `generator`, on a device, where drawing costs no copy; each kind of device has draws of its own."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *tags))


@contextmanager
def scoped(seed: int, *tags: str | int) -> Iterator[None]:
    """Seed torch's global stream inside the block and restore it afterwards.

    Only for code that reads the global stream and takes no generator: initialisation in timm,
        dropout.
    """
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, *tags))
        yield


@contextmanager
def plain_defaults() -> Iterator[None]:
    """Torch's own defaults inside the block, float32 on the CPU, whatever the process has set."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


def normal_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise of `x`'s shape, dtype and device; `generator` may live elsewhere."""
    return normal(tuple(x.shape), x, generator)


def normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise of `shape` with the dtype and device of `like`."""
    return torch.randn(
        shape, dtype=like.dtype, device=_draw_device(like, generator), generator=generator
    ).to(like.device)


def uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """U(0, 1) draws of `shape` with the dtype and device of `like`."""
    return torch.rand(
        shape, dtype=like.dtype, device=_draw_device(like, generator), generator=generator
    ).to(like.device)


def permutation(n: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """A random permutation of 0 .. n-1 on the device of `like`."""
    return torch.randperm(n, device=_draw_device(like, generator), generator=generator).to(
        like.device
    )


def _draw_device(like: Tensor, generator: torch.Generator | None) -> torch.device:
    return like.device if generator is None else generator.device
