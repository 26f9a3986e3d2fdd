"""Hook of mkdocs: the repository's figures, which lie in metrics/, become files of the site."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
FIGURE = re.compile(r"\]\(\.\./(metrics/figures/[\w/.-]+\.png)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add every figure under its path in the repository."""
    for path in sorted((ROOT / "metrics/figures").rglob("*.png")):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to figures, which start from docs/ in the repository, start from the site's root."""
    return FIGURE.sub(r"](\1)", markdown)
