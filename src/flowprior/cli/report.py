"""`flowprior report`: what the experiments gave, as a page and as Markdown."""

from pathlib import Path
from typing import Annotated

import typer

from flowprior.core.root import find_root


def report(
    file: Annotated[
        Path | None, typer.Option(help="Another list of experiments than tables.yaml.")
    ] = None,
) -> None:
    """Write the report of what the experiments gave.

    It is metrics/report.html, one file that needs no network, and metrics/report.md. Results that DVC has and the
    repository lacks are taken first.
    """
    from flowprior.report.command import write_report

    write_report(find_root(), file, typer.echo)
