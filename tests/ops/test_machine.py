"""What a process runs on, what it used, and where that is written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowprior.core.io import read_json
from flowprior.ops.machine import commit, machine, usage, write_costs

COSTS = {"seconds", "peak_memory_mib"} | ({"peak_gpu_memory_mib"} & {*usage(0.0)})


def test_a_machine_is_told_by_what_changes_results() -> None:
    found = machine()
    assert {"cpu", "cores", "threads", "python", "torch"} <= set(found)
    assert found["threads"] == torch.get_num_threads()
    assert found["cores"] == os.cpu_count()
    assert ("gpu" in found) == torch.cuda.is_available()
    assert all(value not in ("", 0) for value in found.values())


def test_peak_memory_is_what_was_resident_at_most_and_does_not_fall() -> None:
    """64 MiB that are given back still count."""
    before = usage(0.0)["peak_memory_mib"]
    code = (
        "import sys; from flowprior.ops.machine import usage; first = usage(0)['peak_memory_mib']\n"
        "block = bytearray(b'x') * (64 << 20); del block\n"
        "print(usage(0)['peak_memory_mib'] - first, 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    grown, with_torch = done.stdout.split()
    assert 60 < float(grown) < 80
    assert with_torch == "False"
    assert usage(0.0)["peak_memory_mib"] >= before > 1


def test_costs_are_one_flat_file_beside_the_metrics(tmp_path: Path) -> None:
    numbers = write_costs(tmp_path, "train_toy", 12.5, None, images_per_second=3.0)
    assert set(numbers) == COSTS | {"images_per_second"}
    assert numbers["seconds"] == 12.5
    found = read_json(tmp_path / "metrics/costs/train_toy.json")
    assert {name: found[name] for name in numbers} == numbers
    assert found["machine"] == machine()
    assert found["commit"] == commit()
    assert found["began_at"] is None
    assert set(found) == set(numbers) | {"machine", "commit", "began_at"}


def test_costs_say_which_other_code_began_the_run(tmp_path: Path) -> None:
    write_costs(tmp_path, "train_toy", 1.0, "abc123")
    assert read_json(tmp_path / "metrics/costs/train_toy.json")["began_at"] == "abc123"


def test_costs_of_stages_do_not_mix(tmp_path: Path) -> None:
    for seconds, stage in ((1.0, "one"), (2.0, "two"), (3.0, "one")):
        write_costs(tmp_path, stage, seconds)
    assert read_json(tmp_path / "metrics/costs/one.json")["seconds"] == 3.0
    assert read_json(tmp_path / "metrics/costs/two.json")["seconds"] == 2.0


def git(folder: Path, *command: str) -> str:
    """What git prints in a folder, of somebody without a configuration."""
    who = {
        f"GIT_{role}_{part}": "t@e"
        for role in ("AUTHOR", "COMMITTER")
        for part in ("NAME", "EMAIL")
    }
    done = subprocess.run(
        ["git", *command],
        cwd=folder,
        env=os.environ | who | {"GIT_CONFIG_GLOBAL": os.devnull},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_commit_is_marked_where_code_differs_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edited code, not edited parameters or metrics, which differ after any run."""
    for name in ("src/a.py", "stages/b.py", "params.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "one")
    monkeypatch.chdir(tmp_path)
    head = git(tmp_path, "rev-parse", "--short=12", "HEAD")
    assert commit() == head
    (tmp_path / "params.yaml").write_text("2\n")
    assert commit() == head
    (tmp_path / "stages/b.py").write_text("2\n")
    assert commit() == f"{head}+"


def test_outside_a_repository_the_commit_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() == "unknown"
