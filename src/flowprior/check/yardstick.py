"""What latents are measured by: reference targets, and sets of fresh targets that give each figure its interval."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from flowprior.check.measures import ALIGNED, Reference, figures_of, reference_of
from flowprior.core.rng import derive_seed

REFERENCE = 2000
"""Targets that sets are compared with, at most."""
SET = 1000
"""Vectors of a set that is compared, at most; in many dims fewer, since the cost grows with both."""
MANY_DIMS = 128
CONTROLS = 10
"""Sets of fresh targets."""
LEAST_TARGETS = 100
LEAST_LATENTS = 50
T_VALUE = 3.25
"""Of a two-sided interval of 99% with 9 degrees of freedom."""
ANY, POSITIVE, SHARE = (-np.inf, np.inf), (0.0, np.inf), (0.0, 1.0)
SHARES = ("precision", "recall", "coverage", "missing", "c2st_accuracy")
SIGNED = ("energy_distance",)
"""Figures by what they can be; an unbiased estimate of a distance can be below 0."""


class Measure(NamedTuple):
    """A figure of the latents, beside what sets of as many fresh targets get.

    Attributes:
        value: Of the latents.
        fresh: Mean over the sets of fresh targets.
        sd: Standard deviation over such sets; of the NLL gap that of a difference of two means, which the latents' own
            spread is in.
        within: What the figure can be at all.
    """

    value: float
    fresh: float
    sd: float
    within: tuple[float, float] = ANY

    @property
    def interval(self) -> tuple[float, float]:
        """Where one more set of fresh targets would lie, 99 times in 100."""
        reach = T_VALUE * self.sd * (1 + 1 / CONTROLS) ** 0.5
        least, most = self.within
        return max(self.fresh - reach, least), min(self.fresh + reach, most)


class Yardstick:
    """Reference targets and fresh sets of a size, with their figures.

    The sets are disjoint from the reference, and from one another where there are enough targets.

    Args:
        targets: [m, d].
        num_latents: How many will be looked at.
        seed: Of the cuts, projections and tests.

    Attributes:
        size: Vectors of each set that is compared: latents are cut to it.
        reference: What sets are compared with.
        controls: The sets of fresh targets, [size, d] each.
        figures: Of each set, its figures.

    Raises:
        ValueError: There are too few targets or latents, or targets do not vary.
    """

    def __init__(self, targets: Float[ndarray, "m d"], num_latents: int, seed: int) -> None:
        if not enough(len(targets), num_latents):
            raise ValueError(
                f"a check needs at least {LEAST_TARGETS} targets and {LEAST_LATENTS} latents, found {len(targets)} "
                f"and {num_latents}"
            )
        self.seed = seed
        self.size, num_reference = sizes(len(targets), num_latents, targets.shape[1])
        self.targets = np.asarray(targets, dtype=np.float64)
        draw = np.random.default_rng(derive_seed(seed, "check", "cuts"))
        order = draw.permutation(len(targets))
        self.reference: Reference = reference_of(self.targets[order[:num_reference]])
        rest = order[num_reference:]
        if len(rest) >= CONTROLS * self.size:
            rows = [rest[i * self.size : (i + 1) * self.size] for i in range(CONTROLS)]
        else:
            rows = [draw.permutation(rest)[: self.size] for _ in range(CONTROLS)]
        self.controls = [self.targets[row] for row in rows]
        self.figures = [figures_of(control, self.reference, seed) for control in self.controls]
        # Sets that share members differ by less than sets of fresh targets would.
        self._shared = 1.0
        if len(rest) < CONTROLS * self.size:
            self._shared = (1 - self.size / len(rest)) ** -0.5

    def measure(self, latents: Float[ndarray, "n _d"]) -> dict[str, Measure]:
        """Every figure of latents, which are cut to `size`."""
        found = figures_of(self.cut(latents), self.reference, self.seed)
        return {
            name: self.measure_of(
                value, [figures[name] for figures in self.figures], range_of(name)
            )
            for name, value in found.items()
        }

    def measure_of(
        self, value: float, fresh: list[float], within: tuple[float, float] = ANY
    ) -> Measure:
        """A figure of the latents beside those of the sets."""
        sd = self._shared * float(np.std(fresh, ddof=1))
        return Measure(value, float(np.mean(fresh)), sd, within)

    def cut(self, latents: Float[ndarray, "n _d"]) -> Float[ndarray, "k _d"]:
        """At most `size` of them, at random, float64."""
        draw = np.random.default_rng(derive_seed(self.seed, "check", "latents"))
        return np.asarray(latents[draw.permutation(len(latents))[: self.size]], dtype=np.float64)


def range_of(name: str) -> tuple[float, float]:
    """What a figure can be at all, by its name."""
    plain = name.removeprefix(ALIGNED)
    return SHARE if plain in SHARES else ANY if plain in SIGNED else POSITIVE


def enough(num_targets: int, num_latents: int) -> bool:
    """Whether so many can be compared."""
    return num_targets >= LEAST_TARGETS and num_latents >= LEAST_LATENTS


def sizes(num_targets: int, num_latents: int, dim: int) -> tuple[int, int]:
    """Vectors of a set, and of the reference.

    At least as many targets again are left for the sets as are in one, so that these differ.
    """
    most = SET if dim <= MANY_DIMS else SET // 2
    size = min(num_latents, most, num_targets // 4)
    return size, min(num_targets // 2, 2 * size, REFERENCE)
