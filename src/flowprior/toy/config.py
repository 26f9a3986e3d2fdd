"""The parameters of the 2-D study, checked like those of the pipeline (pydantic and yaml only)."""

import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from flowprior.config import params
from flowprior.config.params import ROOT, Pull, Section, Training, parse_as, read_yaml

FILE = Path(__file__).with_name("params.yaml")
Target = Literal["mixture", "grid", "moons", "rings", "spiral", "swiss_roll"]
Objective = Literal[
    "none",
    "flow_prior",
    "likelihood",
    "elbo",
    "sds",
    "dmd",
    "sliced_w2",
    "mmd",
    "moments",
    "kl",
]
NEIGHBOURS = 5
"""k of the coverage metrics."""


class Flow(Training):
    """The flow of a target and its training."""

    width: int = Field(ge=8)
    depth: int = Field(ge=1)
    batch_vectors: int = Field(ge=1)
    time_groups: int = Field(ge=1)


class Points(Section):
    """The free points and their optimisation (Adam)."""

    count: int = Field(ge=1)
    time_groups: int = Field(ge=1)
    lr: float = Field(gt=0, le=10)
    steps: int = Field(ge=1)
    log_steps: int = Field(ge=1)
    checkpoint_steps: int = Field(ge=1)

    @model_validator(mode="after")
    def _counts_fit(self) -> "Points":
        if self.count < 4 * (NEIGHBOURS + 1):
            raise ValueError(
                f"points.count ({self.count}) is too few for neighbours with k = {NEIGHBOURS}; "
                f"take at least {4 * (NEIGHBOURS + 1)}"
            )
        if self.count % self.time_groups:
            raise ValueError(
                f"points.time_groups ({self.time_groups}) must divide points.count ({self.count})"
            )
        if self.log_steps > self.steps:
            raise ValueError(f"log_steps ({self.log_steps}) must be at most steps ({self.steps})")
        return self


class Density(Section):
    """Reference densities and the maps."""

    kde_samples: int = Field(ge=100)
    bandwidth: float = Field(gt=0)
    grid: int = Field(ge=2, le=1000)
    map_draws: int = Field(ge=1)


class Theory(Section):
    """Points of each region, and nodes of the quadrature over times and over each of two noises."""

    points: int = Field(ge=10)
    times: int = Field(ge=2, le=256)
    noises: int = Field(ge=2, le=64)


class Scale(Section):
    """One scale of everything."""

    flow: Flow
    points: Points
    density: Density
    theory: Theory


class Study(Section):
    """The whole file."""

    seed: int = Field(ge=0, lt=2**32)
    preset: str
    align: Pull
    targets: list[Target]
    exact: list[Literal["mixture", "grid"]]
    objectives: list[Objective]
    presets: dict[str, Scale]

    @model_validator(mode="after")
    def _preset_exists(self) -> "Study":
        if self.preset not in self.presets:
            raise ValueError(
                f"preset: found {self.preset!r}, allowed: {', '.join(sorted(self.presets))}"
            )
        if not {"mixture", *self.exact} <= set(self.targets):
            raise ValueError(
                "targets must hold mixture, on which the objectives are compared, and all of exact"
            )
        return self

    @property
    def scale(self) -> Scale:
        """The chosen preset."""
        return self.presets[self.preset]


def load_study() -> Study:
    """Read and check the whole file."""
    return parse_as(Study, read_yaml(FILE))


def check(name: str) -> None:
    """As `params.check`, for this file, and for the argument of a script that takes one."""
    params.check(name, load=load_study)


def argument(choices: str) -> Any:
    """The script's one argument, a name of that list in the parameters."""
    allowed = getattr(load_study(), choices)
    if len(sys.argv) != 2 or sys.argv[1] not in allowed:
        sys.exit(f"usage: {Path(sys.argv[0]).name} <one of {', '.join(allowed)}>")
    return sys.argv[1]


if __name__ == "__main__":
    check(__name__)

__all__ = ["NEIGHBOURS", "ROOT", "Study", "argument", "check", "load_study"]
