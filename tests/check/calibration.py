"""How often the check calls latents of a known kind by their name.

python -m tests.check.calibration            half an hour on one core; prints what was said
python -m tests.check.calibration --record   writes it to metrics/check_calibration.json, from which the docs have it
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from flowprior.check.verdict import compare
from flowprior.check.yardstick import Yardstick

RECORDED = Path(__file__).resolve().parents[2] / "metrics/check_calibration.json"
TARGETS = 20_000
"""That a prior keeps."""
FRESH = (200, 1000, 20_000)
"""Sizes of fresh samples, which are good."""
NUM = 1000
"""Latents of everything else."""
PER_RESERVOIR = 20
"""Trials with the same kept targets."""

Draw = Callable[[np.random.Generator, int], ndarray]


class Kind(NamedTuple):
    """A distribution of targets.

    Attributes:
        name: In words.
        draw: So many of them.
        few: The same from some of ten modes, where there are modes.
    """

    name: str
    draw: Draw
    few: Callable[[np.random.Generator, int, int], ndarray] | None = None


def modes(dim: int, width: float) -> Kind:
    """Ten Gaussians."""
    centres = np.random.default_rng(dim).normal(size=(10, dim))

    def draw(rng: np.random.Generator, n: int) -> ndarray:
        return few(rng, n, 10)

    def few(rng: np.random.Generator, n: int, count: int) -> ndarray:
        chosen = rng.permutation(10)[:count]
        return centres[rng.choice(chosen, n)] + width * rng.normal(size=(n, dim))

    return Kind(f"ten modes in {dim} dims", draw, few)


def kinds() -> list[Kind]:
    """What targets are like."""
    matrix = np.random.default_rng(1).normal(size=(32, 32)) * np.logspace(0, -3, 32)
    codes = np.random.default_rng(2).normal(size=(64, 8))
    return [
        Kind("Gaussian, 4 dims", lambda rng, n: rng.normal(size=(n, 4))),
        Kind("Gaussian, 32 dims", lambda rng, n: rng.normal(size=(n, 32))),
        Kind("nearly singular Gaussian, 32 dims", lambda rng, n: rng.normal(size=(n, 32)) @ matrix),
        Kind("heavy tails (t, 3 degrees), 8 dims", lambda rng, n: rng.standard_t(3, size=(n, 8))),
        Kind("table of 64 codes, 8 dims", lambda rng, n: codes[rng.integers(0, 64, n)]),
        modes(2, 0.1),
        modes(8, 0.2),
        modes(32, 0.2),
    ]


def latents_of(kind: Kind, rng: np.random.Generator) -> Iterator[tuple[str, str, ndarray]]:
    """What was done to a sample, by which name it should go, and the latents."""
    sample = kind.draw(rng, NUM)
    dim = sample.shape[1]
    yield "scale 0.5", "narrow", 0.5 * sample
    yield "scale 2", "wide", 2 * sample
    yield "half a standard deviation away", "shifted", sample + 0.5 * sample.std(0)
    half = np.linalg.qr(rng.normal(size=(dim, dim)))[0][:, : dim // 2]
    yield "half the rank", "low rank", sample @ half @ half.T
    if kind.few is not None:
        yield "3 of 10 modes", "collapsed", kind.few(rng, NUM, 3)
        root = np.linalg.cholesky(np.cov(sample, rowvar=False))
        gaussian = sample.mean(0) + rng.normal(size=sample.shape) @ root.T
        yield "a Gaussian of the same moments", "other shape", gaussian


def words(kind: Kind, trials: int, seed: int) -> dict[str, Counter[str]]:
    """How often each word was said, by what was done; the right word first in each key's text."""
    found: dict[str, Counter[str]] = {}
    for start in range(0, trials, PER_RESERVOIR):
        rng = np.random.default_rng([seed, start])
        targets = kind.draw(rng, TARGETS)
        yardsticks = {n: Yardstick(targets, n, start) for n in {min(n, NUM) for n in FRESH}}
        for _ in range(min(PER_RESERVOIR, trials - start)):
            cases = [(f"fresh, {n}", "good", kind.draw(rng, n)) for n in FRESH]
            for what, wanted, latents in [*cases, *latents_of(kind, rng)]:
                yardstick = yardsticks[min(len(latents), NUM)]
                verdict, _ = compare(latents, yardstick)
                found.setdefault(f"{wanted}: {what}", Counter())[verdict.word] += 1
    return found


def main() -> None:
    """Run all kinds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    found: dict[str, dict[str, dict[str, int]]] = {}
    for kind in kinds():
        found[kind.name] = {k: dict(v) for k, v in words(kind, asked.trials, 0).items()}
        print(kind.name, found[kind.name], flush=True)
    if asked.record:
        RECORDED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
