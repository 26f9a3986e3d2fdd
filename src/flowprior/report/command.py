"""What the experiments gave, as one page and as Markdown.

Reads   metrics/experiments/, DVC's experiments, MLflow's runs, tables.yaml
Writes  metrics/report.html    one file that needs no network and no script
        metrics/report.md      its tables

    make report

Results of other code than the committed are marked; what is missing is named.
"""

from flowprior.config import params

if __name__ == "__main__":
    params.check(__name__)

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flowprior.config.params import ParamsError
from flowprior.core.io import ArtifactError, write_atomic
from flowprior.experiments.campaign import collect, look
from flowprior.experiments.listing import LISTING, read_listing
from flowprior.experiments.results import load_all
from flowprior.report import contents, page
from flowprior.report import markdown as markdown_tables

ROOT = params.ROOT


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="report.py", description="What the experiments gave.")
    parser.add_argument(
        "--listing", type=Path, default=LISTING, help="another list than tables.yaml"
    )
    args = parser.parse_args(arguments)
    try:
        listing = read_listing(args.listing)
        state = look(ROOT, listing)
        if taken := collect(ROOT, state):
            print(f"taken from DVC: {', '.join(one.name for one in taken)}")
            state = state._replace(results=load_all(ROOT))
        report = contents.build(ROOT, listing, state)
    except (ParamsError, ArtifactError) as error:
        print(error, file=sys.stderr)
        return 2
    write_atomic(ROOT / "metrics/report.html", page.render(report))
    write_atomic(ROOT / "metrics/report.md", markdown_tables.render(report))
    there = len(state.wanted) - len(report.missing)
    print(f"metrics/report.html, metrics/report.md: {there} of {len(state.wanted)} experiments")
    if report.older:
        print(f"made by other code than the committed: {', '.join(report.older)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
