"""What starting costs: imports of the library and of each stage, and their share of the smallest pipeline.

Run with `make bench`.
"""

import os
import statistics
import subprocess
import sys
import time

import params

from .conftest import ROOT, keep

ROUNDS = 3


def seconds_of(code: str, rounds: int = ROUNDS) -> float:
    """Median of a fresh process."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'stages'}"}
    found = []
    for _ in range(rounds):
        clock = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], env=env, check=True)
        found.append(time.perf_counter() - clock)
    return statistics.median(found)


def test_imports(benchmark) -> None:
    """Seconds beyond a bare Python's; `from flowprior import FlowPrior` also relative to `import torch`."""
    bare = seconds_of("pass")
    torch = seconds_of("import torch")
    keep("import_flowprior", {"seconds": seconds_of("import flowprior") - bare})
    ours = seconds_of("from flowprior import FlowPrior")
    keep(
        "import_FlowPrior",
        {"seconds": ours - bare, "to_import_torch": (ours - bare) / (torch - bare)},
    )
    for stage in params.SCIENCE:
        keep(f"import_{stage}", {"seconds": seconds_of(f"import {stage}") - bare})
    benchmark.pedantic(lambda: seconds_of("pass", 1), rounds=1)
