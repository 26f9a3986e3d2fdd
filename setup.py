"""What pyproject.toml cannot say: the page of the package, whose links must not be relative, and its addresses.

    FLOWPRIOR_URL=https://github.com/you/flowprior python -m build

Without a home the page has no pictures, and text in the place of links to files of the repository.
"""

import os
import re
from pathlib import Path

from setuptools import setup

README = Path(__file__).parent / "README.md"
PAPER = "https://arxiv.org/abs/2506.05240"
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)]+)\)")


def package_page(readme: str, home: str) -> str:
    """The README for a package's page.

    Args:
        readme: Markdown with links relative to the repository.
        home: Address of the repository on a host that serves files as GitHub does; empty where there is none.
    """

    def link(found: re.Match[str]) -> str:
        picture, text, path = found.groups()
        if not home:
            return "" if picture else text
        return f"{picture}[{text}]({home}/{'raw' if picture else 'blob'}/HEAD/{path})"

    return LINK.sub(link, readme)


def addresses(home: str) -> dict[str, str]:
    """Project URLs, by their labels."""
    own = {"Source": home, "Changelog": f"{home}/blob/HEAD/CHANGELOG.md"} if home else {}
    return {"Paper": PAPER, **own}


if __name__ == "__main__":
    where = os.environ.get("FLOWPRIOR_URL", "").strip().rstrip("/")
    setup(
        long_description=package_page(README.read_text(encoding="utf-8"), where),
        long_description_content_type="text/markdown",
        project_urls=addresses(where),
    )
