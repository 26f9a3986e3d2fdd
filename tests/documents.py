"""What README.md and docs/ show: pages, their blocks of code, and what each command needs or where it is run."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
BLOCK = re.compile(
    r"(?:^ *<!-- (?P<mark>needs|prints): (?P<words>[^\n]+) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
RUN_ELSEWHERE = {
    "make test": (".ci/run", "make test"),
    "make test-slow": (".ci/run", "make test-slow"),
    "make lint": (".ci/run", "make lint"),
    "make docs": ("Makefile", "mkdocs build --strict --site-dir"),
    "python -m tests.behaviour": (
        "tests/behaviour/test_behaviour.py",
        "def test_a_branch_does_what_its_version_did",
    ),
    "dvc exp run --queue -S 'align.weight=0.01,0.05'": (
        "tests/pipeline/test_pipeline.py",
        '"dvc", "exp", "run", "--queue", "-S", "align.weight=',
    ),
    "dvc queue start -j 2": (
        "tests/pipeline/test_pipeline.py",
        '"dvc", "queue", "start", "-j", "2"',
    ),
    "dvc queue status": ("tests/pipeline/test_pipeline.py", '"dvc", "queue", "status"'),
}
"""Commands that are not run with the others: the file that runs them, and the text in it that does."""


class Block(NamedTuple):
    """A block of code on a page.

    Attributes:
        page: Its path.
        language: What is said behind the fence; "" for nothing.
        body: Its text.
        needs: What the comment above says that it needs; "" where nothing is said.
        prints: The command whose output the comment above says that it is; "" where nothing is said.
    """

    page: str
    language: str
    body: str
    needs: str
    prints: str


def blocks(language: str | None = None) -> list[Block]:
    """All blocks in order, or those of a language."""
    return [
        Block(
            page,
            one["language"],
            re.sub(rf"^{one['indent']}", "", one["body"], flags=re.MULTILINE),
            one["words"] if one["mark"] == "needs" else "",
            one["words"] if one["mark"] == "prints" else "",
        )
        for page, text in PAGES.items()
        for one in BLOCK.finditer(text)
        if language is None or one["language"] == language
    ]


def commands(page: str | None = None) -> list[tuple[str, str]]:
    """Page and command of each line that can be run, in order; all pages, or one."""
    return [
        (block.page, command)
        for block in blocks("sh")
        if not block.needs and page in (None, block.page)
        for line in block.body.splitlines()
        if (command := re.split(r"\s+# ", line)[0].strip())
    ]


def commands_with_needs() -> list[str]:
    """Lines below a comment that says what they need."""
    return [
        command
        for block in blocks("sh")
        if block.needs
        for line in block.body.splitlines()
        if (command := re.split(r"\s+# ", line)[0].strip()) and not command.startswith("#")
    ]
