"""The page and the Markdown that are made of a report."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from flowprior.experiments.planned import Entry
from flowprior.experiments.tables_file import TablesFile
from flowprior.report import command, contents, page
from flowprior.report.contents import Report, build

from .conftest import LOST, OUTDATED, RESUMED, Results

VOID = {"meta", "link", "img", "br"}


class Reader(HTMLParser):
    """Collects the tags of a page; a tag that is closed by another is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def without_images(html: str) -> str:
    """The page's text without what its images hold."""
    return re.sub(r"base64,[^\"]+", "", html)


@pytest.fixture(scope="module")
def html(report: Report) -> str:
    """The page of the report."""
    return page.render_html(report)


def test_the_page_is_whole_and_needs_nothing_else(html: str) -> None:
    """No script, nothing from the network; every image has words, every link a target, every table a name."""
    read = Reader(html)
    assert html.startswith("<!DOCTYPE html>")
    assert not read.all("script")
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", html)
    assert not re.findall(r"url\((?!#)", html)
    assert "@import" not in html
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {(a["href"] or "")[1:] for a in read.all("a")} <= set(ids)
    assert {use["xlink:href"] for use in read.all("use")} <= {f"#{id}" for id in ids}
    assert all(image["alt"] for image in read.all("img"))
    assert all(svg["aria-label"] for svg in read.all("svg"))
    scrolling = [div for div in read.all("div") if div.get("class") == "scroll"]
    assert scrolling
    assert all(div["tabindex"] == "0" and div["aria-label"] for div in scrolling)
    assert "prefers-color-scheme: dark" in html
    assert read.all("html")[0]["lang"] == "en"
    assert not re.search(r"\bnan\b|\bNone\b", without_images(html))
    assert "45.0 (30.0 to 45.0)" in html
    assert "GPU&#39;s, MiB" in html


def test_equal_reports_are_equal_bytes(report: Report) -> None:
    """Shown with a table of one row, which has every kind of chart."""
    table = report.tables[0]
    runs = {table.name: {"semantic": report.runs[table.name]["semantic"]}}
    small = report._replace(tables=[table], runs=runs)
    first, second = page.render_html(small), page.render_html(small)
    assert first.count("<svg") == 5
    assert first == second


def test_each_section_has_its_link(report: Report, html: str) -> None:
    read = Reader(html)
    links = [(a["href"] or "")[1:] for a in read.all("a")[1:]]
    assert links == [section["aria-labelledby"] for section in read.all("section")]
    tables = [f"table-{table.name}" for table in report.tables]
    others = ["trade-off", "curves", "latents", "images", "costs", "limits"]
    assert links == ["claims", *tables, *others]


def test_the_page_has_charts_images_and_all_numbers(report: Report, html: str) -> None:
    read = Reader(html)
    curves = len(report.runs[report.tables[0].name])
    assert len(read.all("svg")) == 2 * len(report.tables) + 2 + curves
    assert html.count("<img") == 2 * 23  # the rows that have results
    for table in report.tables:
        for _, cells in table.rows:
            for cell in cells:
                assert cell.text.partition(" ± ")[0] in html
        for published in table.paper.values():
            assert all(text in html for text in published)


def test_colours_of_the_charts_are_those_of_the_page(html: str) -> None:
    """Each is set for light and, once more, for dark."""
    for name in set(re.findall(r"var\(--(\w+)\)", html)):
        assert len(re.findall(rf"--{name}: ", html)) == 2, name


def test_the_page_says_what_is_missing_and_what_is_outdated(html: str) -> None:
    assert "3 not run yet" in html
    assert f"{LOST}-s0, {LOST}-s1, {LOST}-s2" in html
    assert "Outdated" in html
    assert OUTDATED in html
    assert f"checkpoint of other code of the same version: {RESUMED}." in html


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is counted and no real image judged, which takes seconds."""
    monkeypatch.setattr(contents, "stage_costs", lambda *_: [])
    monkeypatch.setattr(contents, "objective_costs", lambda *_: [])
    monkeypatch.setattr(contents, "real_images", lambda *_: {})


@pytest.mark.usefixtures("quick")
def test_a_page_without_any_results_stands(root: Path, file: TablesFile, rows: list[Entry]) -> None:
    empty = build(root, file, rows, {})
    html = page.render_html(empty)
    links = [a["href"] for a in Reader(html).all("a")]
    assert "#images" not in links
    assert "#curves" not in links
    assert "0 experiments" in html
    assert "no results" in page.render_markdown(empty)


@pytest.mark.usefixtures("quick")
def test_images_that_nothing_judged_are_shown_all_the_same(
    root: Path, file: TablesFile, rows: list[Entry], made_up: Callable[..., Results]
) -> None:
    """As with `evaluation.judge=none`."""
    unjudged = {
        name: one._replace(
            curves={},
            metrics={
                key: None if key.endswith(("extractor", "num_real")) else value
                for key, value in one.metrics.items()
                if "fd_" not in key and "agreement" not in key
            },
        )
        for name, one in made_up().items()
    }
    html = page.render_html(build(root, file, rows, unjudged))
    assert html.count("<img") == 2 * 24
    images = without_images(html).split('id="images"')[1].split("</section>")[0]
    assert "FD" not in images
    assert "PSNR" in images
    assert "#trade-off" not in html
    assert "None" not in without_images(html)


def test_names_cannot_break_the_page(report: Report) -> None:
    """What people write in tables.yaml is text."""
    title = "<script>alert(1)</script> & | more"
    table = report.tables[0]._replace(title=title)
    spoiled = report._replace(tables=[table], runs={table.name: {title: []}})
    assert not Reader(page.render_html(spoiled)).all("script")


def test_the_markdown_tables_are_even(report: Report) -> None:
    """As many cells in every line, one table after the other, whatever the names."""
    claim = report.findings[0].claim.model_copy(update={"says": "a | b"})
    findings = [report.findings[0]._replace(claim=claim), *report.findings[1:]]
    text = page.render_markdown(report._replace(findings=findings))
    widths: list[int] = []
    for line in text.splitlines():
        if line.startswith("|"):
            widths.append(line.replace("\\|", "").count("|"))
        else:
            assert len(set(widths)) <= 1, line
            widths = []
    assert re.search(r"\*\*[78]\.\d ± ", text)
    assert "\n\n\n" not in text
    assert text.endswith("|\n")


def test_both_files_are_written_and_named(
    root: Path, report: Report, rows: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After taking what DVC has of the missing ones."""
    lost = [entry.experiment for entry in rows if entry.row == LOST]
    monkeypatch.setattr(command, "missing", lambda *_: lost)
    monkeypatch.setattr(command, "collect", lambda _, wanted, say: [wanted[0].name])
    monkeypatch.setattr(command, "load_all", lambda _: {})
    monkeypatch.setattr(command, "build", lambda root, file, rows, results: report)
    monkeypatch.setattr(command, "render_html", lambda report: "a page")
    said: list[str] = []
    command.write_report(root, say=said.append)
    assert said[0] == f"taken from DVC: {LOST}-s0"
    assert "69 of 72 experiments" in said[1]
    assert OUTDATED in said[2]
    assert (root / "metrics/report.html").read_text(encoding="utf-8") == "a page"
    markdown = (root / "metrics/report.md").read_text(encoding="utf-8")
    assert markdown == page.render_markdown(report)
