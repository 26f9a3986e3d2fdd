"""Device and ranks, as launched."""

import os

import torch
from accelerate import Accelerator


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
    return Accelerator(cpu=not gpu, mixed_precision="bf16" if precision == "bf16" else "no")
