"""Device and ranks, as launched."""

import atexit
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from accelerate import Accelerator

T = TypeVar("T")


def start_accelerator(precision: str = "fp32") -> Accelerator:
    """The accelerator of this process.

    Without a GPU it is told so: else the ranks that torchrun starts would not know of one another.

    Args:
        precision: `fp32`, or `bf16` for autocast.
    """
    gpu = torch.cuda.is_available()
    if not gpu and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        # torchrun sets OMP_NUM_THREADS=1 for its workers.
        share = (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])
        torch.set_num_threads(max(1, share))
    accelerator = Accelerator(cpu=not gpu, mixed_precision="bf16" if precision == "bf16" else "no")
    if accelerator.num_processes > 1:
        # Threads of a process group that is left open abort the process at its end, now and then.
        atexit.register(_leave)
    return accelerator


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def in_turn(accelerator: Accelerator, num_pieces: int, work: Callable[[int], T]) -> Iterator[T]:
    """Results of pieces 0 .. num_pieces - 1, in order, on rank 0; ranks compute them in turn, each piece once.

    Every rank has to go through it to the end; all but rank 0 get nothing.

    Args:
        accelerator: Of this process.
        num_pieces: They need not divide by the ranks.
        work: Computes a piece, on the CPU at the end.
    """
    ranks, rank = accelerator.num_processes, accelerator.process_index
    for first in range(0, num_pieces, ranks):
        mine = work(first + rank) if first + rank < num_pieces else None
        everyone: list[Any] | None = [mine]
        if ranks > 1:
            everyone = [None] * ranks if rank == 0 else None
            torch.distributed.gather_object(mine, everyone)
        if everyone is not None:
            yield from everyone[: num_pieces - first]
