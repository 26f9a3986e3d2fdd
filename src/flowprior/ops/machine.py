"""The machine that a stage runs on (CPU, GPU, threads, libraries), and the time and memory that it took."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from flowprior.core.io import write_json

MIB = 1 << 20
COSTS = Path("metrics/costs")
"""Below the root, not in git: what differs from run to run."""


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


def commit() -> str:
    """The commit of the working directory, marked `+` where code differs from it; `unknown` outside a repository."""
    found = []
    for command in (
        ["rev-parse", "--short=12", "HEAD"],
        ["status", "--porcelain", "-uno", "src", "stages"],
    ):
        try:
            done = subprocess.run(["git", *command], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return "unknown"
        found.append(done.stdout.strip())
    return found[0] + "+" * bool(found[1])


def write_costs(
    root: Path, stage: str, seconds: float, began_at: str | None = None, **rates: float
) -> dict[str, float]:
    """Write what a stage took to `metrics/costs/<stage>.json`, which git ignores; the numbers of it.

    The file has `usage` and the rates, `machine`, the `commit`, and `began_at`, the commit of other code that began
    the run, if any.

    Args:
        root: Of the workspace.
        stage: Its name.
        seconds: It took.
        began_at: See `flowprior.training.session.Session`.
        rates: For instance `images_per_second`.
    """
    numbers = {**usage(seconds), **rates}
    facts = {"machine": machine(), "commit": commit(), "began_at": began_at}
    write_json(root / COSTS / f"{stage}.json", {**numbers, **facts})
    return numbers


def usage(seconds: float) -> dict[str, float]:
    """What a stage took: `seconds`, `peak_memory_mib` and, on a GPU, `peak_gpu_memory_mib`.

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
