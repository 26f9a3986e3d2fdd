"""Charts: what stands where, and that the same data give the same text."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import pytest
from markupsafe import Markup

from flowprior.report import charts

CHARTS: dict[str, Callable[[], Markup]] = {
    "dots": lambda: charts.dot_plot(
        [charts.Dots("a", [1.0, 3.0], [2.0])], "x", ("one", "two"), "t"
    ),
    "scatter": lambda: charts.scatter([charts.Point("a", [(1.0, 2.0), (3.0, 4.0)])], "x", "y"),
    "curves": lambda: charts.two_axes([charts.Curve([1, 2], [3, 4], [5, 6])], "l", "r", "t"),
}


def texts(svg: Markup) -> list[str]:
    """The words of a chart."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def dots(svg: Markup, name: str) -> list[tuple[float, float]]:
    """Where the dots of one of the page's colours are, [x, y] from the left and the top."""
    marks = re.findall(r'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)" style="([^"]*)"', svg)
    return [(float(x), float(y)) for x, y, style in marks if f"fill: var(--{name})" in style]


@pytest.mark.parametrize("chart", CHARTS)
def test_a_chart_is_one_element_with_a_name_and_real_text(chart: str) -> None:
    """Well-formed, the same each time, with the page's colours and no other file, font or date."""
    svg = CHARTS[chart]()
    assert svg == CHARTS[chart]()
    tree = ElementTree.fromstring(str(svg).replace("<svg", '<svg xmlns:xlink="x"', 1))
    assert tree.attrib["aria-label"]
    assert texts(svg)
    assert not re.findall(r"#[0-9a-f]{6}\b|DejaVu|<metadata|<style|\bdate\b", svg)
    assert set(re.findall(r"var\(--(\w+)\)", svg)) <= set(charts.COLOURS)
    assert not re.findall(r"url\((?!#)", svg)


def test_charts_share_no_ids() -> None:
    ids = [id for chart in CHARTS.values() for id in re.findall(r'\bid="([^"]*)"', chart())]
    assert ids
    assert len(ids) == len(set(ids))


def test_a_chart_without_data_is_nothing() -> None:
    assert charts.dot_plot([charts.Dots("a", [])], "label") == ""
    assert charts.scatter([charts.Point("a", [])], "x", "y") == ""
    assert charts.two_axes([], "x", "y", "t") == ""
    assert charts.two_axes([charts.Curve([], [], [])], "x", "y", "t") == ""


def test_larger_values_are_to_the_right_and_rows_below_one_another() -> None:
    rows = [charts.Dots("a", [1.0, 3.0]), charts.Dots("empty", []), charts.Dots("b", [2.0])]
    svg = charts.dot_plot(rows, "label")
    (left, top), (right, same), (middle, below) = dots(svg, "first")
    assert left < middle < right
    assert top == same < below
    assert [text for text in texts(svg) if text.isalpha()] == ["a", "empty", "b", "label"] or {
        "a",
        "empty",
        "b",
        "label",
    } <= set(texts(svg))


def test_guided_dots_are_hollow_and_beside_the_others() -> None:
    svg = charts.dot_plot([charts.Dots("a", [1.0], [1.0])], "label", ("plain", "guided"))
    (_, first), (_, second) = dots(svg, "first")[0], dots(svg, "back")[0]
    assert first < second
    assert {"plain", "guided"} <= set(texts(svg))


@pytest.mark.parametrize("value", [0.0, 5.0, -2.0, 1e-5])
def test_one_value_alone_has_a_scale(value: float) -> None:
    assert len(dots(charts.dot_plot([charts.Dots("a", [value])], "label"), "first")) == 1


def test_a_long_name_stays_inside() -> None:
    svg = charts.dot_plot([charts.Dots("a_rather_long_name_of_a_row", [1.0, 3.0])], "label")
    (end,) = re.findall(r'text-anchor: end[^"]*" x="([\d.]+)"[^>]*>a_rather', svg)
    assert float(end) > 150
    assert all(x > float(end) for x, _ in dots(svg, "first"))


def test_names_that_would_cover_one_another_are_left_to_the_pointer() -> None:
    points = [charts.Point(f"number_{k}", [(1.0 + k / 1e3, 1.0)]) for k in range(20)]
    svg = charts.scatter([*points, charts.Point("alone", [(9.0, 9.0)])], "x", "y")
    shown = [text for text in texts(svg) if text.startswith(("number", "alone"))]
    assert "alone" in shown
    assert 1 < len(shown) < 10
    assert len(re.findall("<title>", svg)) == 21


def test_distances_that_are_not_positive_have_a_linear_scale() -> None:
    above = charts.scatter([charts.Point("a", [(1.0, 2.0), (2.0, 20.0)])], "x", "y")
    below = charts.scatter([charts.Point("a", [(1.0, -20.0), (2.0, 20.0)])], "x", "y")
    assert "y (log scale)" in texts(above)
    assert "y" in texts(below)
    assert "\N{MINUS SIGN}" in "".join(texts(below))


def test_names_are_text() -> None:
    """What people call their rows cannot break the page."""
    name = '<script>"&'
    for svg in (
        charts.dot_plot([charts.Dots(name, [1.0])], name, title=name),
        charts.scatter([charts.Point(name, [(1.0, 1.0)])], name, name),
        charts.two_axes([charts.Curve([1, 2], [3, 4], [5, 6])], name, name, name),
    ):
        ElementTree.fromstring(str(svg).replace("<svg", '<svg xmlns:xlink="x"', 1))
        assert "<script" not in svg
