"""Kills the pipeline's stages at random moments and starts them again, for as long as it is asked; ends with a table.

Usage   make chaos MINUTES=10

A round runs one stage of a clone on the smoke preset (its training five times as long), sends a signal at any moment
from DVC's start to its end, runs `dvc repro` again and compares with a clone that nobody disturbed. Exit status 1 if
anything differs.
"""

import argparse
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.pipeline.test_kill import TRAINING, Run, before, is_up_to_date, made, scratch
from tests.pipeline.workspace import STAGES, clone

STEPS = 300


class Round(NamedTuple):
    """A row of the table."""

    stage: str
    signal: str
    target: str
    moment: str
    resumed_at_step: str
    identical: str
    seconds: str


def longer(root: Path) -> None:
    """Let the smoke preset train for more steps, so that more moments lie within training."""
    file = root / "params.yaml"
    head, smoke, tail = file.read_text(encoding="utf-8").partition("\n  smoke:\n")
    own, imagenet, rest = tail.partition("\n  imagenet:\n")
    assert own.count(" steps: 60\n") == len(TRAINING)
    own = own.replace(" steps: 60\n", f" steps: {STEPS}\n")
    file.write_text(head + smoke + own + imagenet + rest, encoding="utf-8")


def durations(root: Path, folder: Path) -> dict[str, float]:
    """Wall-clock seconds of each stage, DVC's own included."""
    found = {}
    for stage in STAGES:
        copy = before(stage, root, folder / "timed" / "clone")
        clock = time.perf_counter()
        Run(copy, "--single-item", stage).ends()
        found[stage] = time.perf_counter() - clock
        shutil.rmtree(copy.parent)
    return found


def where(said: str) -> str:
    """How far a run had come, by what it printed."""
    if "Updating lock file" in said or "Generating lock file" in said:
        return "ending"
    steps = re.findall(r"step (\d+)/", said)
    return f"step {steps[-1]}" if steps else "stage" if "Running stage" in said else "starting"


def play(
    undisturbed: Path, folder: Path, seconds: dict[str, float], dice: random.Random
) -> Round | None:
    """One round; None where DVC had ended before the moment; the next are drawn earlier."""
    stage = dice.choice(STAGES)
    alone = dice.random() < 0.4
    kinds = [signal.SIGTERM, signal.SIGKILL, *([] if alone else [signal.SIGINT])]
    kind = dice.choice(kinds)
    moment = dice.uniform(0, seconds[stage])
    root = before(stage, undisturbed, folder / "round" / "clone")
    clock = time.perf_counter()
    first = Run(root, "--single-item", stage)
    if first.code(moment) is not None:
        seconds[stage] *= 0.8
        shutil.rmtree(root.parent)
        return None
    came = where(first.said)
    first.strike(kind, alone)
    first.code()
    if not alone:
        first.leaves_nobody()
    saved = any(root.glob(f".ckpt/{stage}/*/state.pt"))
    second = Run(root, "--single-item", stage)
    problems = [] if second.code() == 0 else ["repro failed"]
    first.leaves_nobody()  # an orphan may come late
    again = re.search(r"goes on at step (\d+)", second.said)
    if f"Running stage '{stage}'" in second.said and saved and again is None:
        problems.append("started over")
    if not problems:
        if made(root, stage) != made(undisturbed, stage):
            problems.append("bytes")
        if not is_up_to_date(root, stage):
            problems.append("dvc status")
        problems += [name for name in scratch(root) if name.startswith("data/")]
    if problems:
        print(f"--- first\n{first.said[-4000:]}\n--- second\n{second.said[-4000:]}", flush=True)
    awaited = ", waited" if "waiting for" in second.said else ""
    shutil.rmtree(root.parent)
    return Round(
        stage,
        kind.name,
        "dvc alone" if alone else "group",
        f"{moment:.1f} of {seconds[stage]:.1f} s: {came}",
        ("-" if again is None else again[1]) + awaited,
        "NO: " + ", ".join(problems) if problems else "yes",
        f"{time.perf_counter() - clock:.0f}",
    )


def main() -> int:
    """Play rounds until the time is over."""
    parser = argparse.ArgumentParser(description="Kill stages at random and compare.")
    parser.add_argument("--minutes", type=float, default=10, help="rounds are begun for so long")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32, help="of the dice")
    asked = parser.parse_args()
    dice = random.Random(asked.seed)
    print(f"seed {asked.seed}", flush=True)
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        undisturbed = clone(folder / "undisturbed" / "clone")
        longer(undisturbed)
        Run(undisturbed).ends()
        seconds = durations(undisturbed, folder)
        print(f"| {' | '.join(Round._fields)} |\n|{'---|' * len(Round._fields)}", flush=True)
        end = time.monotonic() + 60 * asked.minutes
        while time.monotonic() < end:
            if (row := play(undisturbed, folder, seconds, dice)) is not None:
                rounds.append(row)
                print(f"| {' | '.join(row)} |", flush=True)
    different = sum(row.identical != "yes" for row in rounds)
    print(f"{len(rounds)} rounds, {different} of them different", flush=True)
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
