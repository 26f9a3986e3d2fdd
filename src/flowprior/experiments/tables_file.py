"""The sections of `tables.yaml`: which experiments are compared, what the tables show, what is claimed of them."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from flowprior.config.messages import ParamsError, parse_as
from flowprior.config.yaml12 import read_yaml
from flowprior.core.registry import allowed
from flowprior.core.section import Section

TABLES_FILE = "tables.yaml"
"""Its place below the repository's root."""


class Table(Section):
    """Experiments that are compared with each other, a row for each."""

    title: str
    sets: str = ""
    """Settings that all rows share; a row's own come after them and win."""
    rows: dict[str, str] = Field(min_length=1)
    """Each row's name and its settings: `key=value` as for `dvc exp run -S`, separated by spaces."""

    @model_validator(mode="after")
    def _rows_can_name_files(self) -> "Table":
        for row in self.rows:
            if not re.fullmatch(r"\w[\w.-]*", row):
                raise ValueError(f"row {row!r}: a name may have letters, digits, `_`, `.` and `-`")
        return self


class Published(Section):
    """The figures that a paper reports for the rows of a table."""

    source: str
    columns: list[str]
    rows: dict[str, str]
    """Of each row the numbers, separated by spaces, one for each of the columns."""

    @model_validator(mode="after")
    def _one_number_for_each_column(self) -> "Published":
        for row, numbers in self.rows.items():
            if len(numbers.split()) != len(self.columns):
                raise ValueError(f"{row}: {numbers!r} is not one number for each of {self.columns}")
        return self


class Column(Section):
    """A metric that the tables show."""

    metric: str
    """As results name it: `stage.name`."""
    name: str
    """The head of the column."""
    better: Literal["higher", "lower", "zero", "one"]
    """Which values are better: the higher, the lower, or those nearer to zero or one."""
    digits: int = Field(ge=0, le=6)
    """Decimal places."""


class Claim(Section):
    """A sentence that the results can support or contradict.

    The runs of `rows` are compared with those of the rows `against`, or with the number `than`; `trend` names a table
    instead, whose rows are taken in order.
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
    def _asks_one_question(self) -> "Claim":
        asked = (bool(self.against), self.than is not None, self.trend is not None)
        if sum(asked) != 1 or bool(self.rows) == asked[2]:
            raise ValueError("a claim has rows with `against` or `than`, or a `trend`")
        return self


class TablesFile(Section):
    """The whole of `tables.yaml`."""

    preset: str
    """The preset of every experiment."""
    seeds: list[int] = Field(min_length=1)
    """Every row runs once with each of them."""
    tables: dict[str, Table] = Field(min_length=1)
    columns: list[Column]
    """What the tables show."""
    paper: dict[str, Published] = Field(default={})
    """What a paper reports for a table's rows."""
    claims: list[Claim] = Field(default=[])

    @model_validator(mode="after")
    def _names_exist(self) -> "TablesFile":
        for name, published in self.paper.items():
            self._check(f"paper.{name}", "table", [name], self.tables)
            self._check(f"paper.{name}", "row", published.rows, self.tables[name].rows)
        rows = {row for table in self.tables.values() for row in table.rows}
        for claim in self.claims:
            where = f"claims: {claim.says!r}"
            self._check(where, "row", [*claim.rows, *claim.against], rows)
            self._check(where, "table", [claim.trend] if claim.trend else [], self.tables)
        return self

    @staticmethod
    def _check(where: str, kind: str, names: Iterable[str], known: Iterable[str]) -> None:
        for name in names:
            if name not in known:
                raise ValueError(f"{where}: there is no {kind} {name!r}, {allowed(name, known)}")


def read_tables_file(path: Path) -> TablesFile:
    """Read and check a file in the format of `tables.yaml`.

    Raises:
        ParamsError: It is absent, not YAML, or wrong; one line for each mistake.
    """
    try:
        return parse_as(TablesFile, read_yaml(path))
    except ParamsError as error:
        lines = (
            line if path.name in line else f"{path.name}: {line}"
            for line in str(error).splitlines()
        )
        raise ParamsError("\n".join(lines)) from None
