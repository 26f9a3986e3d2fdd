"""What a process runs on, and what it used."""

import os
import platform
import re
import sys
from pathlib import Path

MIB = 1 << 20


def machine() -> dict[str, str | int]:
    """Where results come from: another processor, library or number of threads adds up in another order.

    Keys: `cpu` and `gpu` (models; `gpu` only where torch sees one), `cores`, `threads` (of torch's operations),
    `python`, `torch`.
    """
    import torch

    found: dict[str, str | int] = {
        "cpu": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def usage(seconds: float) -> dict[str, float]:
    """What a stage took, for its metrics: `seconds`, `peak_memory_mib` and, on a GPU, `peak_gpu_memory_mib`.

    Memory is this process's: the most that was resident, and the most that torch had allocated on the GPU.
    Like seconds they differ from run to run.
    """
    found = {"seconds": seconds, "peak_memory_mib": _peak_bytes() / MIB}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated() / MIB
    return found


def _processor() -> str:
    try:
        names = re.findall(
            r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
        )
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor() or platform.machine()


def _peak_bytes() -> float:
    try:
        # Not getrusage: Linux counts what the parent had before exec.
        status = Path("/proc/self/status").read_text()
        return float(re.findall(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)[0]) * 1024
    except (OSError, IndexError):
        import resource

        peak = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return peak if sys.platform == "darwin" else peak * 1024
