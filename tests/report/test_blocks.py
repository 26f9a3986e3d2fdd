"""Marked blocks of Markdown files: filled from the metrics, nothing else is touched."""

import json
import re
from pathlib import Path

import pytest

from flowprior.report.blocks import main, updated

from .conftest import ROOT

BLOCKS = {
    "report: What holds here": "| claim |",
    "bench: amd-epyc-2-threads": "GFLOP/s there",
    "results": "`sample_eval.fd_digits`",
    "objectives": "| `dmd` |",
    "theory": "| off target |",
}


def block(name: str, inside: str = "anything") -> str:
    """A marked block."""
    return f"before\n<!-- {name} -->\n{inside}\n<!-- /{name.partition(':')[0]} -->\nafter"


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_written_anew_and_then_stays(name: str) -> None:
    text = updated(block(name), ROOT)
    assert text.startswith(f"before\n<!-- {name} -->\n")
    assert text.endswith(f"<!-- /{name.partition(':')[0]} -->\nafter")
    assert BLOCKS[name] in text
    assert "anything" not in text
    assert not re.search(r"\bnan\b|\bNone\b", text)
    assert updated(text, ROOT) == text


@pytest.mark.parametrize("name", BLOCKS)
def test_a_wrong_number_is_put_right(name: str) -> None:
    text = updated(block(name), ROOT)
    for number in re.finditer(r"\d+\.\d+", text):
        wrong = f"{text[: number.start()]}7{text[number.start() :]}"
        assert wrong != text
    assert updated(re.sub(r"(\d+\.\d+)", r"7\1", text), ROOT) == text


@pytest.mark.parametrize("name", ["results", "objectives", "theory"])
def test_the_lines_of_a_table_are_even(name: str) -> None:
    lines = [line for line in updated(block(name), ROOT).splitlines() if line.startswith("|")]
    assert len(lines) > 4
    assert len({line.count("|") for line in lines}) == 1


def test_numbers_are_those_of_the_metrics(tmp_path: Path) -> None:
    """At the committed seed, and their range over seeds."""
    metrics = json.loads((ROOT / "metrics/sample_eval.json").read_text())
    line = next(x for x in updated(block("results"), ROOT).splitlines() if "fd_digits`" in x)
    paths = sorted((ROOT / "metrics/experiments").glob("semantic-s*.json"))
    seeds = [json.loads(p.read_text())["metrics"]["sample_eval.fd_digits"] for p in paths]
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[2] == f"{metrics['fd_digits']:.1f}"
    assert cells[3] == f"{min(seeds):.1f} to {max(seeds):.1f}"
    assert cells[4] == f"{metrics['fd_digits_guided']:.1f}"


def test_other_text_and_comments_stay() -> None:
    text = "a <!-- note --> b\n\n<!-- results --> | 1 |\n"
    assert updated(text, ROOT) == text


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"reports.*did you mean 'report'"):
        updated(block("reports"), ROOT)
    with pytest.raises(ValueError, match="no table 'Nothing'"):
        updated(block("report: Nothing"), ROOT)


def test_the_command_updates_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.md"
    path.write_text(block("theory"), encoding="utf-8")
    monkeypatch.chdir(ROOT)
    main([str(path)])
    assert path.read_text(encoding="utf-8") == updated(block("theory"), ROOT)
