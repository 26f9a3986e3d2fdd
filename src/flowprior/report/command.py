"""The report of a repository: what there is of its experiments, as a page and as Markdown.

Reads   metrics/experiments/, DVC's experiments, MLflow's runs, tables.yaml
Writes  metrics/report.html    one file that needs no network and no script
        metrics/report.md      its tables
"""

from collections.abc import Callable
from pathlib import Path

from flowprior.core.io import write_atomic
from flowprior.experiments.collect import collect
from flowprior.experiments.planned import entries
from flowprior.experiments.results import load_all
from flowprior.experiments.status import missing
from flowprior.experiments.tables_file import TABLES_FILE, read_tables_file
from flowprior.report.contents import build
from flowprior.report.page import render_html, render_markdown


def write_report(
    root: Path, tables: Path | None = None, say: Callable[[str], None] = print
) -> None:
    """Take what DVC has of missing experiments, and write both files; outdated and missing ones are named in them.

    Args:
        root: The repository.
        tables: Another file than its tables.yaml.
        say: Gets the lines for a user.

    Raises:
        ParamsError: The tables file or params.yaml is wrong.
        ArtifactError: A result cannot be read.
    """
    file = read_tables_file(tables or root / TABLES_FILE)
    if taken := collect(root, missing(root, tables), say):
        say(f"taken from DVC: {', '.join(taken)}")
    report = build(root, file, entries(file, root), load_all(root))
    write_atomic(root / "metrics/report.html", render_html(report))
    write_atomic(root / "metrics/report.md", render_markdown(report))
    total = report.num_results + len(report.missing)
    say(f"metrics/report.html, metrics/report.md: {report.num_results} of {total} experiments")
    if report.outdated:
        say(f"outdated, `make tables` makes them anew: {', '.join(report.outdated)}")
