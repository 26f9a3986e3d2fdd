"""Randomness without global state: every draw comes from (seed, tags), whatever ran before it."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
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
    elsewhere = torch.get_default_device().type != "cpu"
    try:
        with torch.device("cpu") if elsewhere else nullcontext():  # it costs every call of torch
            yield
    finally:
        torch.set_default_dtype(dtype)


def normal_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise of `x`'s shape, dtype and device; `generator` may live elsewhere."""
    return normal(tuple(x.shape), x, generator)


def normal(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise of `shape` with the dtype and device of `like`."""
    return _draw("normal", shape, like, generator)


def uniform(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """U(0, 1) draws of `shape` with the dtype and device of `like`."""
    return _draw("uniform", shape, like, generator)


def permutation(n: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """A random permutation of 0 .. n-1 on the device of `like`."""
    return _draw("permutation", [n], like, generator)


def _draw(
    kind: str, shape: Sequence[int], like: Tensor, generator: torch.Generator | None
) -> Tensor:
    if not torch.compiler.is_compiling():
        return _draw_now(kind, shape, like, generator)
    if generator is None:
        # Opaque to the compiler, whose own draws would be others; part of its graph, of any shape.
        drawn: Tensor = torch.ops.flowprior.draw(kind, list(shape), like.detach())
        return drawn
    return _draw_outside(kind, shape, like, generator)


def _draw_now(
    kind: str, shape: Sequence[int], like: Tensor, generator: torch.Generator | None
) -> Tensor:
    device = like.device if generator is None else generator.device
    if kind == "permutation":
        return torch.randperm(shape[0], device=device, generator=generator).to(like.device)
    draw = torch.randn if kind == "normal" else torch.rand
    return draw(tuple(shape), dtype=like.dtype, device=device, generator=generator).to(like.device)


def _draw_outside(
    kind: str, shape: Sequence[int], like: Tensor, generator: torch.Generator
) -> Tensor:
    """Draw with a generator, which no compiled graph can hold: the graph ends before it and goes on after."""
    torch._dynamo.graph_break()
    return _draw_now(kind, shape, like, generator)


@torch.library.custom_op(
    "flowprior::draw", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
def _draw_op(kind: str, shape: Sequence[int], like: Tensor) -> Tensor:
    return _draw_now(kind, shape, like, None)


@_draw_op.register_fake
def _(kind: str, shape: Sequence[int], like: Tensor) -> Tensor:
    dtype = torch.int64 if kind == "permutation" else like.dtype
    return like.new_empty(tuple(shape), dtype=dtype)
