"""What is run, shown and asked, `tables.yaml`: read it, check it, and say which experiments that needs."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from flowprior.config import params
from flowprior.config.params import Params, ParamsError, Section
from flowprior.core.io import digest

LISTING = params.ROOT / "tables.yaml"


class Table(Section):
    """Rows that are compared."""

    title: str
    sets: str = ""
    """What all rows set, before their own."""
    rows: dict[str, str] = Field(min_length=1)
    """Name, and what it sets: `key=value`, separated by spaces."""


class Published(Section):
    """What a paper reports for the rows of a table."""

    source: str
    columns: list[str]
    rows: dict[str, str]
    """Numbers separated by spaces, as many as columns."""

    @model_validator(mode="after")
    def _as_many_as_columns(self) -> Self:
        for row, numbers in self.rows.items():
            if len(numbers.split()) != len(self.columns):
                raise ValueError(f"{row}: {numbers!r} is not one number for each of {self.columns}")
        return self


class Metric(Section):
    """A column."""

    metric: str
    """`stage.name`."""
    name: str
    """Its head."""
    better: Literal["higher", "lower", "zero", "one"]
    """The best value, or where the best lies."""
    digits: int = Field(ge=0, le=6)


class Claim(Section):
    """A sentence that the results may bear out.

    The runs of `rows` are compared with those of `against` or with the number `than`; `trend` asks the runs of a
    whole table, its rows in order.
    """

    says: str
    by: str
    metric: str
    rows: list[str] = Field(default=[])
    against: list[str] = Field(default=[])
    than: float | None = None
    trend: str | None = None
    expect: Literal["higher", "lower", "same"]

    @model_validator(mode="after")
    def _one_question(self) -> Self:
        asked = (bool(self.against), self.than is not None, self.trend is not None)
        if sum(asked) != 1 or bool(self.rows) == asked[2]:
            raise ValueError("a claim has rows with `against` or `than`, or a `trend`")
        return self


class Listing(Section):
    """The whole file."""

    preset: str
    """Of every experiment."""
    seeds: list[int] = Field(min_length=1)
    tables: dict[str, Table] = Field(min_length=1)
    paper: dict[str, Published]
    columns: list[Metric]
    claims: list[Claim]

    @model_validator(mode="after")
    def _rows_exist(self) -> Self:
        for name, published in self.paper.items():
            if name not in self.tables:
                raise ValueError(f"paper.{name}: there is no such table")
            self._check(f"paper.{name}", published.rows, self.tables[name].rows)
        everywhere = {row for table in self.tables.values() for row in table.rows}
        for claim in self.claims:
            self._check(f"claims: {claim.says!r}", [*claim.rows, *claim.against], everywhere)
            self._check(f"claims: {claim.says!r}", [claim.trend or ""], {*self.tables, ""})
        return self

    @staticmethod
    def _check(where: str, names: Iterable[str], known: Iterable[str]) -> None:
        for name in names:
            if name not in known:
                raise ValueError(f"{where} names {name!r}, which no table has")


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
                common = (f"preset={listing.preset}", f"seed={seed}", *table.sets.split())
                settings = (*common, *setting.split())
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
    """Everything that the stages' results depend on, by stage, with the settings in place; see `settle`."""
    cfg = settle(settings, tree)
    return {stage: cfg.tracked(stage) for stage in params.SCIENCE}


def settle(settings: tuple[str, ...], tree: Mapping[str, Any]) -> Params:
    """The parameters with the settings in place.

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
    return params.parse(changed)
