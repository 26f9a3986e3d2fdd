"""Which rooms of the project does a script import, directly, through others, or by a name of a registry?"""

import ast
import importlib
from functools import cache
from pathlib import Path

import grimp

from flowprior.core.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
NEVER = ("flowprior.config", "flowprior.ops")
"""DVC tracks the values of parameters, not what checks them; and tracking, costs and locks decide no result."""


@cache
def graph() -> grimp.ImportGraph:
    """Imports at run time between all modules of the package."""
    return grimp.build_graph("flowprior", exclude_type_checking_imports=True, cache_dir=None)


def imported_by(script: Path) -> set[str]:
    """Modules of the package that a script names."""
    names = set()
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("flowprior"):
            both = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            names |= both & graph().modules
    return names


def closure(script: Path) -> set[str]:
    """Modules that a script is made of; those of `NEVER` and sections of the parameters are not looked into."""
    seen: set[str] = set()
    waiting = imported_by(script)
    while waiting:
        module = waiting.pop()
        if module in seen or module.startswith(NEVER):
            continue
        seen.add(module)
        if module.endswith(".names"):
            waiting |= homes(module)
        if not module.endswith(".config"):
            waiting |= graph().find_modules_directly_imported_by(module)
    return seen


def homes(names: str) -> set[str]:
    """Modules where what a room's registries name is defined."""
    found = importlib.import_module(names)
    registries = [part for part in vars(found).values() if isinstance(part, Registry)]
    return {place.partition(":")[0] for registry in registries for place in registry.homes.values()}


def rooms(script: Path) -> set[str]:
    """Folders of the package that a script is made of."""
    parts = (module.split(".") for module in closure(script))
    return {part[1] for part in parts if len(part) > 2}


def plugin_rooms(script: Path) -> set[str]:
    """Folders of `plugins/` that a script may load from."""
    found = set()
    for module in closure(script):
        if module.endswith(".names"):
            registries = vars(importlib.import_module(module)).values()
            found |= {part.room for part in registries if isinstance(part, Registry)}
    return found
