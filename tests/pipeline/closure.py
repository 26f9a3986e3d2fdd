"""Which files of the project does a script import, directly or through others?"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = {"stages/params.py", "stages/toy/study_params.py"}
"""DVC tracks the values of the parameters, not the files that check them."""
PACKAGE_DATA = {"src/flowprior/encoders/shipped.py": "src/flowprior/data/digits"}
"""What a module reads besides its imports."""


def imported_files(path: Path) -> set[Path]:
    """Files of the project that one file imports, wherever in it the import stands, but for type checking."""
    found: set[Path] = set()
    for node in _run_time_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            found |= _files_of(name, path.parent)
    return found


def closure(script: Path) -> list[str]:
    """Everything a script is made of, itself included, relative to the root, sorted."""
    seen: set[Path] = set()
    waiting = [script.resolve()]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting += imported_files(path)
    names = {path.relative_to(ROOT).as_posix() for path in seen} - LEFT_OUT
    names |= {data for module, data in PACKAGE_DATA.items() if module in names}
    return sorted(name for name in names if not _is_empty(name))


def _run_time_nodes(tree: ast.AST) -> list[ast.AST]:
    nodes: list[ast.AST] = []
    for node in ast.iter_child_nodes(tree):
        checks_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not checks_types:
            nodes += [node, *_run_time_nodes(node)]
    return nodes


def _files_of(name: str, beside: Path) -> set[Path]:
    """The module's file and the `__init__` of every package above it; nothing for a library's."""
    parts = name.split(".")
    if parts[0] == "flowprior":
        base = ROOT / "src"
        found = {base.joinpath(*parts[:i], "__init__.py") for i in range(1, len(parts) + 1)}
        found.add(base.joinpath(*parts).with_suffix(".py"))
        return {path for path in found if path.is_file()}
    if not beside.is_relative_to(ROOT / "stages"):
        return set()
    candidates = (folder / f"{name}.py" for folder in (beside, ROOT / "stages"))
    return set(list(filter(Path.is_file, candidates))[:1])


def _is_empty(name: str) -> bool:
    return name.endswith("__init__.py") and not (ROOT / name).read_text(encoding="utf-8").strip()
