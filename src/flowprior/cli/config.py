"""`flowprior config`: all parameters as stages get them, and the file that each value comes from."""

import difflib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer
import yaml

from flowprior.cli.mistakes import unusable
from flowprior.config.messages import ParamsError
from flowprior.config.presets import Resolved, leaves, resolve
from flowprior.config.schema import STAGES
from flowprior.config.yaml12 import read_yaml
from flowprior.core.root import find_root
from flowprior.experiments.planned import has_key, parse_settings, with_settings

FROM_COMMAND = "--set"
"""What stands for the file of a value that is set on the command line."""
WIDEST = 72
"""Column up to which comments are aligned; those of longer lines stand behind them."""


def config(
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-S",
            metavar="KEY=VALUE",
            help="Set a value, as `dvc exp run -S` would; may be given more than once.",
        ),
    ] = None,
    stage: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only what this stage reads.")
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="JSON: `parameters`, nested, and `origins`, by dotted key."),
    ] = False,
) -> None:
    """Print all parameters, and the file that each comes from."""
    if stage is not None and stage not in STAGES:
        near = difflib.get_close_matches(stage, STAGES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"--stage {stage!r}: the stages are {', '.join(STAGES)}{hint}")
    try:
        resolved = _resolve(settings or [])
    except ParamsError as error:
        raise unusable(error) from None
    params, origins = resolved
    values = params.model_dump(mode="json") if stage is None else params.tracked(stage)
    if as_json:
        shown = {key: origins[key] for key, _ in leaves(values)}
        typer.echo(json.dumps({"parameters": values, "origins": shown}, indent=2))
    else:
        typer.echo(as_yaml(values, origins))
    for note in params.notes():
        print(f"note: {note}", file=sys.stderr)


def _resolve(settings: Sequence[str]) -> Resolved:
    """The repository's parameters with settings in place, and the origin of every value, empty mappings too.

    Raises:
        ParamsError: A setting cannot be read, or the parameters are not valid with it.
    """
    root = find_root()
    tree, changes = read_yaml(root / "params.yaml"), parse_settings(settings)
    tree = with_settings(tree, changes) if changes else tree
    resolved = resolve(root, tree)
    preset = f"presets/{resolved.params.preset}.yaml"
    origins = {}
    for key, _ in leaves(resolved.params.model_dump(mode="json")):
        origin = resolved.origins.get(key) or ("params.yaml" if has_key(tree, key) else preset)
        is_set = any(f"{key}.".startswith(f"{changed}.") for changed in changes)
        origins[key] = FROM_COMMAND if is_set and origin == "params.yaml" else origin
    return Resolved(resolved.params, origins)


def as_yaml(values: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """Nested values as YAML, with the origin of each in an aligned comment behind it.

    Args:
        values: Plain values.
        origins: The origin of each leaf, by dotted key.
    """
    lines = list(_lines(values, origins, "", ""))
    column = max((len(text) for text, _ in lines if len(text) <= WIDEST), default=0)
    return "\n".join(f"{text:{column}}  # {origin}" if origin else text for text, origin in lines)


def _lines(
    values: Mapping[str, Any], origins: Mapping[str, str], prefix: str, indent: str
) -> Iterator[tuple[str, str]]:
    """The lines of a mapping, each with its origin; "" for the head of a section."""
    for name, value in values.items():
        key = _scalar(name)
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:", ""
            yield from _lines(value, origins, f"{prefix}{name}.", f"{indent}  ")
        else:
            yield f"{indent}{key}: {_scalar(value)}", origins[f"{prefix}{name}"]


def _scalar(value: Any) -> str:
    """A value in one line of YAML."""
    text: str = yaml.dump(
        value, Dumper=_OneLine, default_flow_style=True, width=float("inf"), allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")


class _OneLine(yaml.SafeDumper):
    """Writes YAML that reads as the same value by the rules of 1.1 and of 1.2, no text in more than a line."""


def _represent_text(dumper: _OneLine, text: str) -> yaml.ScalarNode:
    style = None if text.splitlines() == [text] else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_OneLine.add_representer(str, _represent_text)
# What is a number in YAML 1.2 alone, such as 1e-4: as a text it is written in quotes.
_OneLine.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9.]+([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)
