"""YAML as DVC writes it: PyYAML's safe loader with the numbers and truth values of YAML 1.2, and each key once."""

import re
from pathlib import Path
from typing import Any

import yaml

from flowprior.config.messages import ParamsError


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2, which DVC writes: 5e-05 is a number, `on` a word; a key stands once."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def _mapping_once(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    twice = sorted({str(key) for key in keys if keys.count(key) > 1})
    if twice:
        raise ParamsError(f"the key {twice[0]!r} stands twice{node.start_mark}")
    return {
        key: loader.construct_object(value, deep=True)
        for key, (_, value) in zip(keys, node.value, strict=True)
    }


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_once)


def read_yaml(path: Path) -> object:
    """Read a file by the rules of YAML 1.2.

    Raises:
        ParamsError: It is absent or not YAML.
    """
    try:
        return read_text(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise ParamsError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path} is not YAML: {error}") from None


def read_text(text: str, name: str) -> object:
    """Read a text by the rules of YAML 1.2.

    Raises:
        ParamsError: It is not YAML; `name` says what is not.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except ParamsError:
        raise
    except (yaml.YAMLError, RecursionError, TypeError, ValueError) as error:
        raise ParamsError(f"{name} is not YAML: {error}") from None
