"""What the experiments gave, as one page and as Markdown.

Reads   metrics/experiments/, DVC's experiments, MLflow's runs, stages/tables/tables.yaml
Writes  metrics/report.html    one file that needs no network and no script
        metrics/report.md      its tables

    make report

Results of other code than the committed are marked; what is missing is named.
"""

import params

if __name__ == "__main__":
    params.check(__name__)

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import contents
import markdown_tables
import page
from campaign import collect, look
from flowprior.io import ArtifactError, write_atomic
from listing import LISTING, read_listing
from params import ParamsError
from results import load_all

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
