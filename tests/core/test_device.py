"""Ranks that work in turn: every piece once and in order, also where pieces do not divide by ranks."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

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


@pytest.mark.slow  # each rank imports torch
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_under_torchrun_pieces_are_computed_once_and_the_first_rank_has_them_in_order(
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


class Rank(Accelerator):
    """One of several ranks, in a thread of its own."""

    def __init__(self, index: int, count: int) -> None:
        self.place = index, count

    @property
    def process_index(self) -> int:
        return self.place[0]

    @property
    def num_processes(self) -> int:
        return self.place[1]


@pytest.mark.parametrize("pieces", [0, 1, 5, 6])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_piece_is_computed_once_by_the_rank_whose_turn_it_is(
    monkeypatch: pytest.MonkeyPatch, ranks: int, pieces: int
) -> None:
    """Threads in the place of processes; what they gather meets at a barrier."""
    barrier, slots = threading.Barrier(ranks, timeout=60), [None] * ranks
    mine = threading.local()

    def gather(piece: Any, everyone: list[Any] | None) -> None:
        slots[mine.rank] = piece
        barrier.wait()
        if everyone is not None:
            everyone[:] = slots
        barrier.wait()

    monkeypatch.setattr(torch.distributed, "gather_object", gather)

    def go(rank: int) -> tuple[list[str], list[int]]:
        mine.rank, computed = rank, []

        def work(index: int) -> str:
            computed.append(index)
            return f"piece {index}"

        return list(in_turn(Rank(rank, ranks), pieces, work)), computed

    with ThreadPoolExecutor(ranks) as threads:
        outcomes = list(threads.map(go, range(ranks)))
    assert outcomes[0][0] == [f"piece {index}" for index in range(pieces)]
    assert all(found == [] for found, _ in outcomes[1:])
    assert [computed for _, computed in outcomes] == [
        list(range(rank, pieces, ranks)) for rank in range(ranks)
    ]
