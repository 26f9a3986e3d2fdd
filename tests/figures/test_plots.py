"""Figures of the pipeline: what they show, and that they are the same bytes each time."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from flowprior.figures.plots import alignment_figure, sample_figure, save_figure


def figures() -> dict[str, Figure]:
    """One of each kind."""
    rows = [{"step": 10.0 * k, "alignment_loss": 2.0 - k, "mean_log_r5": -k} for k in range(3)]
    grid = np.zeros((10, 4, 8, 8, 1), dtype=np.uint8)
    labels = [str(label) for label in range(10)]
    return {
        "alignment": alignment_figure(rows, 5, "Pearson 1.00"),
        "samples": sample_figure([("one", grid), ("two", grid)], labels),
    }


def test_figures_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    for turn in ("a", "b"):
        for name, figure in figures().items():
            save_figure(figure, tmp_path / turn / f"{name}.png")
    for name in figures():
        first, second = ((tmp_path / turn / f"{name}.png").read_bytes() for turn in ("a", "b"))
        assert first == second
        assert b"Software" not in first


def test_both_curves_have_an_axis_of_their_own() -> None:
    left, right = figures()["alignment"].axes
    assert np.asarray(left.lines[0].get_ydata()).tolist() == [2.0, 1.0, 0.0]
    assert np.asarray(right.lines[0].get_ydata()).tolist() == [0, -1, -2]
    assert left.get_ylabel() != right.get_ylabel()


def test_panels_have_titles_and_each_class_its_label() -> None:
    figure = figures()["samples"]
    assert [axis.get_title() for axis in figure.axes] == ["one", "two"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list("0123456789")
