"""Rooms point down, subpackages do not run code on import, nothing in the package imports a script."""

import ast
from pathlib import Path

import grimp
import pytest

from .pipeline.closure import ROOT, graph

LAYERS = (
    "cli",
    "report",
    "experiments",
    ("costs", "toy"),
    "config",
    "generation",
    "mar",
    "generators",
    ("evaluation", "figures"),
    "autoencoder",
    "reconstruction",
    ("alignment", "check"),
    "prior",
    "features",
    "encoders",
    "images",
    "training",
    ("flow", "stats"),
    "ops",
    "core",
)
"""From the top down; rooms in one tuple do not import one another. A room that is new needs a place."""

PACKAGE = ROOT / "src/flowprior"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
SPEAK = ("cli", "config", "costs", "experiments", "ops", "report", "training")
"""Rooms that talk to a person; the others return or raise."""


def test_every_room_has_its_place() -> None:
    placed = {room for layer in LAYERS for room in ([layer] if isinstance(layer, str) else layer)}
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert placed == rooms


def test_rooms_import_lower_rooms_only() -> None:
    layers = [
        layer if isinstance(layer, str) else grimp.Layer(*layer, independent=True)
        for layer in LAYERS
    ]
    illegal = graph().find_illegal_dependencies_for_layers(layers, containers={"flowprior"})
    shown = [f"{one.importer} imports {one.imported}" for one in illegal]
    details = [
        f"{route.heads} ... {route.tails}" for one in illegal for route in list(one.routes)[:2]
    ]
    assert not shown, "\n".join(shown + details)


def test_there_are_no_cycles_between_modules() -> None:
    imports = {
        module: graph().find_modules_directly_imported_by(module) for module in graph().modules
    }
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"cycle: {' '.join((*above, module))}"
        if module not in done:
            for other in imports[module]:
                visit(other, (*above, module))
            done.add(module)

    for module in imports:
        visit(module, ())


def test_subpackages_run_nothing_on_import() -> None:
    for init in PACKAGE.rglob("__init__.py"):
        if init.parent != PACKAGE:
            assert not init.read_text(encoding="utf-8").strip(), init


def test_the_package_imports_no_script() -> None:
    scripts = {path.stem for path in (ROOT / "stages").rglob("*.py")}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names} & scripts, path
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert (node.module or "").split(".")[0] not in scripts, path


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_models_and_mathematics_name_no_device_and_print_nothing(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    room = path.relative_to(PACKAGE).parts[0]
    assert ".cuda(" not in source
    if room not in SPEAK and path.name != "train_shipped.py":
        assert "print(" not in source.replace("file=sys.stderr", "") or "sys.stderr" in source
    assert "manual_seed(" not in source or path.name in ("rng.py", "batches.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_module_fits_on_a_few_screens_or_says_why_not(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 300 or "one module" in lines[0], f"{path} has {len(lines)} lines"


@pytest.mark.parametrize("stage", sorted((ROOT / "stages").glob("*.py")), ids=lambda p: p.stem)
def test_a_stage_is_read_on_two_screens(stage: Path) -> None:
    assert len(stage.read_text(encoding="utf-8").splitlines()) <= 130


CALLED = ("__init__", "forward", "__call__", "images")
"""Methods that their class describes."""


def raising(path: Path) -> dict[str, str]:
    """Public functions and classes that raise in their own body, each with its docstring."""
    found: dict[str, str] = {}

    def raises(body: list[ast.stmt]) -> bool:
        inner = [node for node in body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
        nodes = [each for node in inner for each in ast.walk(node)]
        return any(isinstance(node, ast.Raise) and node.exc is not None for node in nodes)

    def visit(body: list[ast.stmt], owner: ast.ClassDef | None) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                visit(node.body, node)
            elif isinstance(node, ast.FunctionDef) and raises(node.body):
                if owner is not None and node.name in CALLED:
                    own = ast.get_docstring(node) or ""
                    found[owner.name] = own + (ast.get_docstring(owner) or "")
                elif not node.name.startswith("_"):
                    found[node.name] = ast.get_docstring(node) or ""

    visit(ast.parse(path.read_text(encoding="utf-8")).body, None)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_what_raises_says_so(path: Path) -> None:
    """Of the command's functions the docstring is the help; errors are told in a line there."""
    if "cli" not in path.relative_to(PACKAGE).parts:
        silent = [name for name, told in raising(path).items() if "Raises:" not in told]
        assert not silent, silent
