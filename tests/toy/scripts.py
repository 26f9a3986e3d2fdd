"""The study's scripts as modules, found by their path: their names are too common to be imported by."""

import importlib.util
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parents[2] / "stages/toy"


def load_script(name: str) -> ModuleType:
    """A script of stages/toy; importing it runs nothing."""
    spec = importlib.util.spec_from_file_location(f"toy_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
