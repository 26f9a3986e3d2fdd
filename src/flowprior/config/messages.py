"""What is wrong with parameters, in a line each: the key, what was found, what is allowed."""

import types
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from flowprior.core.registry import allowed
from flowprior.core.section import Section


class ParamsError(ValueError):
    """The parameters cannot be used; one line for each mistake."""


class Unsaid:
    """Stands for a value that params.yaml leaves to the preset and the preset does not have; no field accepts it."""


UNSAID = Unsaid()

S = typing.TypeVar("S", bound=Section)


def parse_as(kind: type[S], tree: object, origins: Mapping[str, str] | None = None) -> S:
    """Check parameters that were read, as a section of the given kind.

    Args:
        kind: The section's class.
        tree: What was read.
        origins: File of every value, by dotted key, to be named in messages.

    Raises:
        ParamsError: One line for each mistake: the key, what was found, what is allowed.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        lines = (_from(_explain(kind, dict(e)), e["loc"], origins or {}) for e in error.errors())
        raise ParamsError("\n".join(lines)) from None


def unsaid(key: str) -> str:
    """What is said of a key that both files leave to the other."""
    return f"{key}: params.yaml says `preset`, but the preset says nothing of it"


def _from(line: str, location: tuple[Any, ...], origins: Mapping[str, str]) -> str:
    """The line, with the file that the value is in where it is not params.yaml."""
    key = ".".join(str(part) for part in location)
    files = {file for name, file in origins.items() if name == key or name.startswith(f"{key}.")}
    if not key or files == {"params.yaml"} or len(files) != 1:
        return line
    return f"{line} (in {files.pop()})"


def _explain(kind: type[Section], error: dict[str, Any]) -> str:
    """One mistake in one line."""
    location: tuple[Any, ...] = error["loc"]
    key = ".".join(str(part) for part in location)
    found = error["input"]
    if error["type"] == "extra_forbidden":
        siblings = _fields_at(kind, location[:-1])
        return f"{key}: unknown key, {allowed(str(location[-1]), siblings)}"
    if error["type"] == "missing":
        return f"{key}: missing"
    if found is UNSAID:
        return unsaid(key)
    if error["type"] == "literal_error":
        expected = _choices_at(kind, location)
        return f"{key}: found {found!r}, {allowed(str(found), expected)}"
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        return message if not key or message.startswith(key.split(".")[0]) else f"{key}: {message}"
    return f"{key}: found {found!r}; {error['msg'][0].lower()}{error['msg'][1:]}"


def _annotation_at(kind: type[Section], location: tuple[Any, ...]) -> Any:
    """The annotation of the field at a path of keys."""
    annotation: Any = kind
    for part in location:
        if typing.get_origin(annotation) is dict:
            annotation = typing.get_args(annotation)[1]
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            field = annotation.model_fields.get(str(part))
            annotation = None if field is None else field.annotation
        elif isinstance(annotation, types.UnionType):
            continue
    return annotation


def _fields_at(kind: type[Section], location: tuple[Any, ...]) -> list[str]:
    annotation = _annotation_at(kind, location)
    return list(annotation.model_fields) if hasattr(annotation, "model_fields") else []


def _choices_at(kind: type[Section], location: tuple[Any, ...]) -> list[str]:
    return [str(choice) for choice in typing.get_args(_annotation_at(kind, location))]
