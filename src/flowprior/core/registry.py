"""Registries: names of one kind of thing, each with the place where it is defined; nothing is imported to list them.

A room's registries stand in its `names.py`, so that parameters are checked before torch is imported. What is new
takes a file and a line there; a user's own takes a file `plugins/<room>/<module>.py` and is named
`plugins.<room>.<module>:<name>`, without an edit of this package.
"""

import ast
import difflib
import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from flowprior.core.root import find_root

PLUGINS = "plugins"
PLUGIN = re.compile(rf"{PLUGINS}\.(\w+)\.(\w+):(\w+)")
"""How parameters name a user's own: room and module are its folder and file, then its name there."""


class Registry:
    """Names of one kind.

    Args:
        room: Folder of `plugins/` that a user's own lie in.
        kind: What they are, for messages.
        homes: Where each is defined, `package.module:attribute`, by name.
    """

    def __init__(self, room: str, kind: str, homes: Mapping[str, str]) -> None:
        self.room = room
        self.kind = kind
        self.homes = dict(homes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.homes)

    def __contains__(self, name: str) -> bool:
        return name in self.homes

    def check(self, name: str) -> str:
        """The name, if it is known or is a plugin that is there; imports nothing.

        Raises:
            ValueError: It is neither; says which names there are and which is nearest.
        """
        if name not in self.homes:
            self._plugin(name)
        return name

    def load(self, name: str) -> Any:
        """What the name stands for.

        Raises:
            ValueError: The name is unknown, or a module of that name elsewhere hides the plugin.
            Exception: Whatever importing a plugin raises.
        """
        if name in self.homes:
            module, _, attribute = self.homes[name].partition(":")
            return getattr(import_module(module), attribute)
        path, attribute = self._plugin(name)
        root = str(path.parents[2])
        if root not in sys.path:
            sys.path.append(root)
        plugin = import_module(f"{PLUGINS}.{self.room}.{path.stem}")
        if Path(plugin.__file__ or "").resolve() != path:
            raise ValueError(f"{name} was imported from {plugin.__file__}, expected {path}")
        return getattr(plugin, attribute)

    def _plugin(self, name: str) -> tuple[Path, str]:
        """File and attribute of a user's own."""
        parts = PLUGIN.fullmatch(name)
        if parts is None:
            own = f"your own: {PLUGINS}.{self.room}.<module>:<name>"
            raise ValueError(f"found {name!r}, {allowed(name, self.homes)}; {own}")
        room, module, attribute = parts.groups()
        if room != self.room:
            raise ValueError(f"found {name!r}; a {self.kind} lies in {PLUGINS}/{self.room}/")
        path = find_root() / PLUGINS / room / f"{module}.py"
        if not path.is_file():
            raise ValueError(f"found {name!r}, but {path} does not exist")
        defined = _top_level_names(path)
        if attribute not in defined:
            raise ValueError(f"{path} has no {attribute!r}, {allowed(attribute, defined)}")
        return path.resolve(), attribute


def plugin_names(tree: object) -> Iterator[str]:
    """The plugins that some parameters (plain values, nested) name."""
    if isinstance(tree, Mapping):
        for part in tree.values():
            yield from plugin_names(part)
    elif isinstance(tree, str) and PLUGIN.fullmatch(tree):
        yield tree


def plugin_digests(tree: object, root: Path | None = None) -> dict[str, str]:
    """Sha256 of the file of every plugin that some parameters name, by the plugin's name.

    Args:
        tree: Parameters as plain values, nested.
        root: The repository; None: the one around the working directory.

    Raises:
        OSError: A file cannot be read.
    """
    digests = {}
    for name in plugin_names(tree):
        _, room, module = name.partition(":")[0].split(".")
        file = (root or find_root()) / PLUGINS / room / f"{module}.py"
        digests[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return digests


def allowed(found: str, choices: Iterable[str]) -> str:
    """The choices, for a message, with the one that was probably meant."""
    names = sorted(choices)
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(found.lower(), lower, n=1, cutoff=0.5)
    hint = f"; did you mean {lower[near[0]]!r}?" if near else ""
    return f"allowed: {', '.join(names)}{hint}"


def _top_level_names(path: Path) -> set[str]:
    """What a module defines, read without running it."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except (SyntaxError, ValueError) as error:  # ValueError: bytes that are no text
        raise ValueError(f"{path} cannot be read as Python: {error}") from None
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
    return names
