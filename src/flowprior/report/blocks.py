"""Bring the figures of a Markdown file up to date with the committed metrics.

    python -m flowprior.report.blocks README.md docs/*.md

What stands between `<!-- name -->` and `<!-- /name -->` is written anew from `templates/blocks/<name>.md`; a name may
have an argument, as in `<!-- report: What holds here -->`.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowprior.core.registry import allowed
from flowprior.core.root import find_root
from flowprior.experiments.claims import summary
from flowprior.experiments.tables_file import TABLES_FILE, read_tables_file
from flowprior.report.contents import plus_minus
from flowprior.report.page import ENVIRONMENT, TEMPLATES

BLOCK = re.compile(r"<!-- ([\w-]+)(?:: (.+?))? -->\n.*?<!-- /\1 -->", re.DOTALL)


def updated(text: str, root: Path) -> str:
    """The text with its blocks filled from the metrics of a repository.

    Raises:
        ValueError: There is no such block, or the report has no such table.
        OSError: A file of metrics cannot be read.
    """
    paper = read_tables_file(root / TABLES_FILE).paper

    def metrics(name: str) -> Any:
        return json.loads((root / f"metrics/{name}.json").read_text(encoding="utf-8"))

    def over_seeds(row: str, metric: str) -> list[float]:
        paths = sorted((root / "metrics/experiments").glob(f"{row}-s*.json"))
        return [json.loads(path.read_text(encoding="utf-8"))["metrics"][metric] for path in paths]

    def fill(block: re.Match[str]) -> str:
        name, argument = block.groups()
        known = {path.stem for path in (TEMPLATES / "blocks").glob("*.md")}
        if name not in known:
            raise ValueError(f"<!-- {name} -->: there is no such block, {allowed(name, known)}")
        body = ENVIRONMENT.get_template(f"blocks/{name}.md").render(
            argument=argument,
            metrics=metrics,
            over_seeds=over_seeds,
            mean_std=lambda values, digits: plus_minus(summary(values), digits),
            paper=paper,
            report_table=lambda title: report_table(root, title),
        )
        mark = f"{name}: {argument}" if argument else name
        return f"<!-- {mark} -->\n{body.strip()}\n<!-- /{name} -->"

    return BLOCK.sub(fill, text)


def report_table(root: Path, title: str) -> str:
    """The first table below a title of metrics/report.md.

    Raises:
        ValueError: There is none.
    """
    text = (root / "metrics/report.md").read_text(encoding="utf-8")
    below = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    table = re.search(r"^\|.*?(?=\n\n|\n?\Z)", below, re.DOTALL | re.MULTILINE)
    if table is None:
        raise ValueError(f"metrics/report.md has no table {title!r}; make it with `make report`")
    return table[0]


def main(arguments: Sequence[str]) -> None:
    """Update files in place."""
    for path in map(Path, arguments):
        path.write_text(updated(path.read_text(encoding="utf-8"), find_root()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
