"""What the benchmarks found: a table at the end, and `metrics/bench_<machine>.json`."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flowprior.config.yaml12 import read_yaml
from flowprior.core.io import write_json
from flowprior.ops.machine import machine

from .side_by_side import Medians, flops_of, matmul_rate, side_by_side

ROOT = Path(__file__).resolve().parents[2]
FOUND: dict[str, dict[str, Any]] = {}
RATE: dict[str, float] = {}
MATMUL = 2048
"""Rows and columns of the matrices whose product the machine's rate is taken from; on a GPU four times as many."""


@pytest.fixture(scope="session", autouse=True)
def unchecked(request: pytest.FixtureRequest) -> None:
    """The tests' checks of types at every call would be timed with the project, and not with its plain twins."""
    if request.config.getoption("jaxtyping_packages"):
        pytest.exit("benchmarks run without the tests' checks of types: make bench", 2)


@pytest.fixture
def device() -> torch.device:
    """Where the benchmarks compute."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def rate(device: torch.device) -> float:
    """Operations per second of a large product in float32 (bf16 on a GPU), measured once."""
    if not RATE:
        gpu = device.type == "cuda"
        dtype = torch.bfloat16 if gpu else torch.float32
        RATE["matmul_flops_per_second"] = matmul_rate(MATMUL * (4 if gpu else 1), dtype, device)
    return RATE["matmul_flops_per_second"]


@pytest.fixture
def compared(benchmark, rate: float) -> Callable[..., Medians]:
    """Times a plain way and ours, and keeps what came of it, with words for what it is and for its plain twin."""

    def compare(
        name: str,
        plain: Callable[[], Any],
        ours: Callable[[], Any],
        *,
        what: str,
        twin: str,
        counted: Callable[[], Any] | bool = True,
        **facts: Any,
    ) -> Medians:
        medians = side_by_side(plain, ours)
        benchmark.pedantic(ours, rounds=1)
        found: dict[str, Any] = {
            "what": what,
            "twin": twin,
            "ratio": medians.ratio,
            "seconds": medians.seconds,
            **facts,
        }
        if counted:  # what runs in compiled code or in graphs is not seen: then by another that does the same
            flops = flops_of(ours if counted is True else counted)
            found |= {"flops": flops, "share_of_matmul": flops / medians.seconds / rate}
        keep(name, found)
        return medians

    return compare


def autocast(device: torch.device) -> torch.autocast:
    """As the stages train: bf16 on a GPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def keep(name: str, found: dict[str, Any]) -> None:
    """Put figures into the table."""
    FOUND.setdefault(name, {}).update(found)


def workspace(folder: Path, change: Callable[[Any], None]) -> dict[str, str]:
    """A folder that stages can run in, by parameters that `change` has changed; their processes' environment."""
    tree: Any = read_yaml(ROOT / "params.yaml")
    change(tree)
    for name in ("src", "stages", "presets", "plugins", "dvc.yaml"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "params.yaml").write_text(yaml.safe_dump(tree))
    path = f"{folder / 'src'}:{folder / 'stages'}"
    return {**os.environ, "PYTHONPATH": path, "FLOWPRIOR_MLFLOW": "off"}


def running(stage: str) -> str:
    """The code of a process that runs a stage in its working directory."""
    return (
        "import sys; from pathlib import Path; sys.argv = ['-']; root = Path.cwd(); "
        "from flowprior.config.presets import load_params; "
        f"import {stage}; {stage}.main(load_params(root), root)"
    )


def machine_name() -> str:
    """Of the file: processor or GPU, and threads."""
    facts = machine()
    name = f"{facts.get('gpu', facts['cpu'])} {facts['threads']} threads"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def table(found: dict[str, dict[str, Any]]) -> str:
    """Name, ratio, seconds, share of a matrix product, and what else there is."""
    lines = [f"{'':27}{'ratio':>8}{'ms':>12}{'GFLOP':>10}{'of matmul':>11}"]
    for name, one in found.items():
        known = {"what", "twin", "ratio", "seconds", "flops", "share_of_matmul"}
        cells = (
            f"{one['ratio']:8.2f}" if "ratio" in one else " " * 8,
            f"{1e3 * one['seconds']:12.2f}" if "seconds" in one else " " * 12,
            f"{one['flops'] / 1e9:10.3g}" if "flops" in one else " " * 10,
            f"{one['share_of_matmul']:11.0%}" if "share_of_matmul" in one else " " * 11,
        )
        rest = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in one.items()
            if key not in known
        )
        lines.append(f"{name:27}{''.join(cells)}  {rest}".rstrip())
    return "\n".join(lines)


@pytest.fixture(scope="session", autouse=True)
def written() -> Iterator[None]:
    """At the end of a session that measured something; what a part of the benchmarks finds replaces its part alone."""
    yield
    if not FOUND:
        return
    path = ROOT / f"metrics/bench_{machine_name()}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    facts = before.get("machine", {}) | machine() | RATE
    write_json(path, before | FOUND | {"machine": facts})
    print(f"\n\n{table(FOUND)}\n\n{path.relative_to(ROOT)}")
