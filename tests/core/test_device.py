"""Ranks that work in turn: every piece once and in order, also where pieces do not divide by ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowprior.core.device import in_turn, start_accelerator

WORK = """
import json, sys
from pathlib import Path
import torch
from flowprior.core.device import in_turn, start_accelerator

accelerator = start_accelerator()
mine = []

def work(index):
    mine.append(index)
    return torch.full((index + 1, 2), float(index))

found = [piece.sum().item() for piece in in_turn(accelerator, 5, work)]
out = Path(sys.argv[1]) / f"{accelerator.process_index}.json"
out.write_text(json.dumps({"found": found, "mine": mine}))
"""


SLOW = pytest.mark.slow  # each rank imports torch


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=SLOW), 2, pytest.param(3, marks=SLOW)])
def test_pieces_are_computed_once_and_the_first_rank_has_them_in_order(
    tmp_path: Path, ranks: int
) -> None:
    script = tmp_path / "work.py"
    script.write_text(WORK, encoding="utf-8")
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [sys.executable, *command, str(script), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(ranks)]
    assert reports[0]["found"] == [index * (index + 1) * 2 for index in range(5)]
    assert all(report["found"] == [] for report in reports[1:])
    assert sorted(index for report in reports for index in report["mine"]) == list(range(5))
    assert [report["mine"] for report in reports] == [
        list(range(rank, 5, ranks)) for rank in range(ranks)
    ]


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    asked = []
    pieces = in_turn(start_accelerator(), 3, asked.append)
    next(pieces)
    assert asked == [0]
    assert torch.get_num_threads() >= 1
