"""The list of experiments, `tables.yaml`: read it, check it, and say what has to run."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

import params
from flowprior.io import digest
from params import ParamsError, Section

LISTING = Path(__file__).with_name("tables.yaml")


class Table(Section):
    """Rows that are compared."""

    title: str
    rows: dict[str, str] = Field(min_length=1)
    """Name, and what it sets: `key=value`, separated by spaces."""


class Listing(Section):
    """The whole file."""

    preset: str
    """Of every experiment."""
    seeds: list[int] = Field(min_length=1)
    tables: dict[str, Table] = Field(min_length=1)


class Experiment(NamedTuple):
    """One run of the pipeline.

    Attributes:
        name: What DVC calls it: the row it is listed for first, and the seed.
        settings: What is set, for `dvc exp run -S`.
        key: Hash of all parameters that its stages depend on.
        resolved: Those parameters, by stage.
    """

    name: str
    settings: tuple[str, ...]
    key: str
    resolved: Mapping[str, Any]


class Listed(NamedTuple):
    """Where an experiment stands; several rows may share one."""

    table: str
    row: str
    seed: int
    experiment: Experiment


def read_listing(path: Path = LISTING) -> Listing:
    """Read and check the file.

    Raises:
        ParamsError: One line for each mistake.
    """
    try:
        return params.parse_as(Listing, params.read_yaml(path))
    except ParamsError as error:
        raise ParamsError(f"{path.name}: {error}") from None


def listed(listing: Listing, tree: Mapping[str, Any] | None = None) -> list[Listed]:
    """All that is listed, table by table; within one, seed by seed, so that what is cut off has whole rows to compare.

    Args:
        listing: What to run.
        tree: What `params.yaml` says; None reads it.

    Raises:
        ParamsError: A setting is wrong, or one name would stand for two different experiments.
    """
    tree = params.read_yaml(params.ROOT / "params.yaml") if tree is None else tree
    by_key: dict[str, Experiment] = {}
    found = []
    for name, table in listing.tables.items():
        for seed in listing.seeds:
            for row, setting in table.rows.items():
                settings = (f"preset={listing.preset}", f"seed={seed}", *setting.split())
                try:
                    resolved = resolve(settings, tree)
                except ParamsError as error:
                    raise ParamsError(f"{LISTING.name}: {name}.{row}: {error}") from None
                key = digest(resolved)[:12]
                one = Experiment(f"{row}-s{seed}", settings, key, resolved)
                found.append(Listed(name, row, seed, by_key.setdefault(key, one)))
    names = [one.name for one in by_key.values()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ParamsError(f"{LISTING.name}: {twice[0]} stands for two different experiments")
    return found


def experiments(found: list[Listed]) -> list[Experiment]:
    """What has to run, each once, in order."""
    return list({one.experiment.key: one.experiment for one in found}.values())


def resolve(settings: tuple[str, ...], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the stages' results depend on, by stage, with the settings in place.

    Raises:
        ParamsError: A setting is no `key=value`, its key does not exist, or the whole is not valid.
    """
    changed = deepcopy(dict(tree))
    for setting in settings:
        path, equals, value = setting.partition("=")
        *above, last = path.split(".")
        here: Any = changed
        for name in above:
            here = here.get(name) if isinstance(here, dict) else None
        if not equals or not isinstance(here, dict) or last not in here:
            raise ParamsError(f"{setting!r} sets nothing that params.yaml has")
        here[last] = params.read_text(value, repr(setting))
    cfg = params.parse(changed)
    return {stage: cfg.tracked(stage) for stage in params.SCIENCE}
