"""The parameters of the 2-D study, `stages/toy/params.yaml`, checked like those of the pipeline: without torch."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from flowprior.alignment.config import Pull
from flowprior.alignment.names import OBJECTIVES
from flowprior.config.launch import check_params
from flowprior.config.messages import parse_as
from flowprior.config.presets import leaves
from flowprior.config.yaml12 import read_yaml
from flowprior.core.registry import allowed
from flowprior.core.root import find_root
from flowprior.core.section import Section
from flowprior.toy.names import ExactTargetName, TargetName
from flowprior.training.config import Training

FILE = "stages/toy/params.yaml"
"""Below the repository's root."""
NEIGHBOURS = 5
"""k of the coverage metrics."""


class Flow(Training):
    """The flow of a target and its training."""

    width: int = Field(ge=8)
    depth: int = Field(ge=1)
    batch_vectors: int = Field(ge=1)
    time_groups: int = Field(ge=1)
    """Vectors of a batch share so many times."""

    @property
    def plan(self) -> dict[str, Any]:
        """The arguments of the session's `Plan`."""
        return {
            "num_steps": self.steps,
            "log_steps": self.log_steps,
            "checkpoint_steps": self.checkpoint_steps,
            "precision": self.precision,
        }


class Points(Section):
    """The free points and their optimisation (Adam)."""

    count: int = Field(ge=1)
    time_groups: int = Field(ge=1)
    """The points share so many times."""
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

    @property
    def plan(self) -> dict[str, Any]:
        """The arguments of the session's `Plan`."""
        return {
            "num_steps": self.steps,
            "log_steps": self.log_steps,
            "checkpoint_steps": self.checkpoint_steps,
            "precision": "fp32",
        }


class Density(Section):
    """Reference densities and the maps."""

    kde_samples: int = Field(ge=100)
    bandwidth: float = Field(gt=0)
    grid: int = Field(ge=2, le=1000)
    """Points along a side of the maps."""
    map_draws: int = Field(ge=1)
    """Draws of noise and time, the same for every point of the loss map."""


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
    targets: list[TargetName]
    exact: list[ExactTargetName]
    objectives: list[Annotated[str, AfterValidator(OBJECTIVES.check)]]
    presets: dict[str, Scale]

    @model_validator(mode="after")
    def _parts_fit(self) -> "Study":
        if self.preset not in self.presets:
            raise ValueError(f"preset: found {self.preset!r}, {allowed(self.preset, self.presets)}")
        if not {"mixture", *self.exact} <= set(self.targets):
            raise ValueError(
                "targets must hold mixture, on which the objectives are compared, and all of exact"
            )
        return self

    @property
    def scale(self) -> Scale:
        """The chosen preset."""
        return self.presets[self.preset]


def load_study(root: Path | None = None) -> Study:
    """The study's parameters in a repository (default: the one around the working directory), checked.

    Raises:
        ParamsError: The file is absent, not YAML, or holds a value that cannot be used.
    """
    tree = read_yaml((root or find_root()) / FILE)
    keys = leaves(tree) if isinstance(tree, Mapping) else ()
    return parse_as(Study, tree, {key: FILE for key, _ in keys})


def check_study(
    name: str, choices: Literal["targets", "exact", "objectives"] | None = None
) -> None:
    """First thing in a script of the study: stop with a readable message if its parameters or its argument are wrong.

    Args:
        name: The script's `__name__`; nothing happens where it is imported.
        choices: See `argument`; None for a script that takes none.
    """
    check_params(name, load=load_study)
    if name == "__main__" and choices is not None:
        argument(choices)


def argument(choices: Literal["targets", "exact", "objectives"]) -> Any:
    """The script's one argument, a name of that list in the parameters; anything else ends it with a message."""
    names = getattr(load_study(), choices)
    script = Path(sys.argv[0]).name
    if len(sys.argv) != 2:
        sys.exit(
            f"usage: {script} <one of {', '.join(names)}>, found {len(sys.argv) - 1} arguments"
        )
    if sys.argv[1] not in names:
        sys.exit(
            f"{script}: found {sys.argv[1]!r}, {allowed(sys.argv[1], names)} ({choices} in {FILE})"
        )
    return sys.argv[1]


if __name__ == "__main__":
    check_study(__name__)
