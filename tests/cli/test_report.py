"""`flowprior report`: it writes both files; what is in them is tried in tests/report."""

from pathlib import Path

import pytest

from ..experiments.conftest import write_tables
from .conftest import mistake, output


def test_both_files_are_written(repository: Path) -> None:
    said = output("report")
    assert "metrics/report.html, metrics/report.md: 0 of 6 experiments" in said
    for name in ("metrics/report.html", "metrics/report.md"):
        assert "semantic" in (repository / name).read_text(encoding="utf-8")


def test_another_list_can_be_given(repository: Path) -> None:
    mine = {"mine": {"title": "Mine", "rows": {"low": "prior.source=low_level"}}}
    path = write_tables(repository.parent / "mine.yaml", tables=mine)
    assert "0 of 2 experiments" in output("report", "--file", str(path))


@pytest.mark.usefixtures("repository")
def test_a_mistake_is_a_line() -> None:
    assert "no.yaml does not exist" in mistake("report", "--file", "no.yaml")
