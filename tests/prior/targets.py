"""Features of the kinds that people bring."""

from collections.abc import Callable

import numpy as np
from numpy import ndarray

Draw = Callable[[np.random.Generator, int], ndarray]
FIXED = np.random.default_rng(7)
CENTRES, CODES = FIXED.normal(size=(10, 32)), FIXED.normal(size=(64, 32))
NARROW = FIXED.normal(size=(32, 32)) * np.logspace(0, -3, 32)


def moons(rng: np.random.Generator, n: int) -> ndarray:
    """Two half circles in the plane, with a little noise."""
    angle, second = rng.uniform(0, np.pi, n), rng.integers(0, 2, n) > 0
    x = np.where(second, 1 - np.cos(angle), np.cos(angle))
    y = np.where(second, 0.5 - np.sin(angle), np.sin(angle))
    return np.stack([x, y], 1) + 0.1 * rng.normal(size=(n, 2))


SETS: dict[str, Draw] = {
    "Gaussian": lambda rng, n: rng.normal(size=(n, 32)),
    "a mean of 20 standard deviations": lambda rng, n: 20 + rng.normal(size=(n, 32)),
    "two moons": moons,
    "mixture": lambda rng, n: CENTRES[rng.integers(0, 10, n)] + 0.3 * rng.normal(size=(n, 32)),
    "heavy tails": lambda rng, n: rng.standard_t(3, size=(n, 32)),
    "codebook": lambda rng, n: CODES[rng.integers(0, 64, n)],
    "binary table": lambda rng, n: rng.integers(0, 2, size=(n, 32)).astype(float),
    "nearly singular Gaussian": lambda rng, n: rng.normal(size=(n, 32)) @ NARROW,
    "integers": lambda rng, n: rng.poisson(5, size=(n, 32)).astype(float),
}
