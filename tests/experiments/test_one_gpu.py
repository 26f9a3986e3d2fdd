"""A GPU for each of the stages that run at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowprior.experiments.one_gpu import visible_gpus

from .conftest import ROOT


def test_one_gpu_is_one_stages_own(tmp_path: Path) -> None:
    """Two at once have different ones; without GPUs it is python."""
    driver = tmp_path / "bin/nvidia-smi"
    driver.parent.mkdir()
    driver.write_text("#!/bin/sh\necho 'GPU 0: x'\necho 'GPU 1: y'\n")
    driver.chmod(0o755)
    env = os.environ | {
        "PATH": f"{driver.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "TMPDIR": str(tmp_path),
    }
    env.pop("CUDA_VISIBLE_DEVICES", None)
    code = "import os, sys; print(os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True); sys.stdin.read()"
    command = [sys.executable, "-m", "flowprior.experiments.one_gpu", "-c", code]

    def start() -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True)

    first = start()
    assert first.stdout is not None
    assert first.stdout.readline() == "0\n"
    second = start()
    assert second.stdout is not None
    assert second.stdout.readline() == "1\n"
    third = start()
    first.communicate("")  # the third waits for it, or comes later
    assert third.communicate("")[0] == "0\n"
    second.communicate("")
    driver.write_text("#!/bin/sh\nexit 9\n")
    alone = subprocess.run(command, env=env, capture_output=True, text=True, input="", check=True)
    assert alone.stdout == "None\n"


def test_gpus_are_those_that_the_process_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """By CUDA_VISIBLE_DEVICES where that is set."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-1f")
    assert visible_gpus() == ["3", "GPU-1f"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", "/nowhere")
    assert visible_gpus() == []
