"""Layers point down, subpackages do not run code on import, stages import flowprior and never the other way round."""

import pytest

from .stages.closure import ROOT, imported_files

LAYERS = (
    {"graphs", "locks", "rng"},
    {"io"},
    {"optim", "flow", "metrics"},
    {"models"},
    {"prior"},
    {"objectives", "data"},
    {"training", "sampling"},
    {"command"},
    {"__main__"},
)
"""From the bottom up; a module imports lower layers, or its own folder."""

PACKAGE = ROOT / "src/flowprior"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def _room(path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _layer(path) -> int:
    levels = [i for i, rooms in enumerate(LAYERS) if _room(path) in rooms]
    assert len(levels) == 1, (
        f"{_room(path)} has a place in {len(levels)} of LAYERS; a new module needs one"
    )
    return levels[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_module_imports_lower_layers_or_its_own_folder(path) -> None:
    layer = _layer(path)
    for other in imported_files(path):
        if other.name == "__init__.py":
            continue
        assert other.is_relative_to(PACKAGE), f"{path} imports {other}"
        own_folder = other.parent == path.parent != PACKAGE
        assert own_folder or _layer(other) < layer, f"{path} imports {other}"


def test_there_are_no_cycles() -> None:
    done: set = set()

    def visit(path, above: tuple) -> None:
        assert path not in above, f"cycle: {[p.name for p in (*above, path)]}"
        if path not in done:
            for other in imported_files(path):
                if other.name != "__init__.py":
                    visit(other, (*above, path))
            done.add(path)

    for path in MODULES:
        visit(path, ())


def test_subpackages_run_nothing_on_import() -> None:
    for init in PACKAGE.rglob("__init__.py"):
        if init.parent != PACKAGE:
            assert not init.read_text(encoding="utf-8").strip(), init


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_models_and_mathematics_name_no_device_and_print_nothing(path) -> None:
    source = path.read_text(encoding="utf-8")
    assert ".cuda(" not in source
    if _room(path) != "training":
        assert "print(" not in source
        assert "manual_seed(" not in source or _room(path) == "rng"
