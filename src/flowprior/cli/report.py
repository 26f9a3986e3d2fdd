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
    """Write metrics/report.html and metrics/report.md from the results of the experiments.

    Results of experiments that DVC has and the repository lacks are taken first. The page needs no network.
    """
    from flowprior.report.command import write_report

    write_report(find_root(), file, typer.echo)
