"""The study's parameters of the last commit, whatever someone is trying out in the tree."""

from typing import Any

from flowprior.config.messages import parse_as
from flowprior.config.yaml12 import read_text
from flowprior.toy.config import FILE, Study

from ..config.committed import text_of


def study_tree(key: str | None = None, value: object = None) -> dict[str, Any]:
    """What stages/toy/params.yaml says, with one dotted key set if one is given."""
    tree: Any = read_text(text_of(FILE), FILE)
    if key is not None:
        node = tree
        *above, last = key.split(".")
        for part in above:
            node = node[part]
        node[last] = value
    return dict(tree)


def study(key: str | None = None, value: object = None) -> Study:
    """`study_tree`, checked."""
    return parse_as(Study, study_tree(key, value))
