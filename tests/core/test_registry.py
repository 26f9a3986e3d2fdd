"""Names stand for places; nothing is imported to check one, and a user's own needs no edit of the package."""

import hashlib
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from flowprior.core.registry import Registry, allowed, plugin_digests

SHAPES = Registry(
    "shapes",
    "shape",
    {
        "round": "fractions:Fraction",
        "square": "decimal:Decimal",
        "gone": "no_such_module_at_all:Thing",
    },
)


@pytest.fixture
def folder(write_plugin: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """`plugins/shapes` of a repository; the working directory is a subfolder of it."""
    folder = write_plugin("shapes", "").parent
    folder.joinpath("own.py").unlink()
    (folder.parents[1] / "deep").mkdir()
    monkeypatch.chdir(folder.parents[1] / "deep")
    return folder


def message_of(name: str) -> str:
    """What is said of a name that cannot be used."""
    with pytest.raises(ValueError, match=r".+") as error:
        SHAPES.check(name)
    return str(error.value)


def test_a_name_stands_for_what_is_defined_at_its_place() -> None:
    from fractions import Fraction

    assert SHAPES.load("round") is Fraction
    assert list(SHAPES) == ["round", "square", "gone"]
    assert "round" in SHAPES
    assert "oval" not in SHAPES


def test_a_name_is_checked_without_importing_what_it_stands_for() -> None:
    assert SHAPES.check("gone") == "gone"
    with pytest.raises(ModuleNotFoundError):
        SHAPES.load("gone")


def test_an_unknown_name_is_told_with_all_names_and_the_nearest_and_how_to_bring_ones_own() -> None:
    message = message_of("sqare")
    assert message.startswith("found 'sqare', allowed: gone, round, square")
    assert "did you mean 'square'?" in message
    assert "plugins.shapes.<module>:<name>" in message
    assert "did you mean" not in message_of("xyzzy")


def test_a_plugin_is_checked_without_being_run(folder: Path) -> None:
    (folder / "own.py").write_text("raise SystemExit('it ran')\n\n\ndef build():\n    pass\n")
    assert SHAPES.check("plugins.shapes.own:build") == "plugins.shapes.own:build"
    assert "plugins.shapes.own" not in sys.modules


@pytest.mark.parametrize(
    "definition",
    [
        "def star(): ...",
        "class star: ...",
        "star = 3",
        "star: int = 3",
        "from math import pi as star",
    ],
)
def test_a_plugin_may_be_whatever_a_module_defines(folder: Path, definition: str) -> None:
    (folder / "own.py").write_text(f"{definition}\n")
    assert SHAPES.check("plugins.shapes.own:star") == "plugins.shapes.own:star"


def test_a_plugin_is_loaded_from_its_file(folder: Path) -> None:
    (folder / "own.py").write_text("from math import tau\n\nclass Star:\n    points = 5\n")
    assert SHAPES.load("plugins.shapes.own:Star").points == 5
    assert SHAPES.load("plugins.shapes.own:tau") == pytest.approx(6.283185307)


def test_plugins_may_import_one_another(folder: Path) -> None:
    (folder / "one.py").write_text(
        "from plugins.shapes.two import SIDES\n\ndef sides():\n    return SIDES\n"
    )
    (folder / "two.py").write_text("SIDES = 7\n")
    assert SHAPES.load("plugins.shapes.one:sides")() == 7


def test_a_plugin_whose_file_is_absent_is_told_with_its_path(folder: Path) -> None:
    assert message_of("plugins.shapes.own:Star") == (
        f"found 'plugins.shapes.own:Star', but {folder / 'own.py'} does not exist"
    )


def test_an_attribute_that_a_plugin_lacks_is_told_with_the_nearest(folder: Path) -> None:
    (folder / "own.py").write_text("class Star:\n    def Stra(self): ...\n")
    message = message_of("plugins.shapes.own:Stra")
    assert f"{folder / 'own.py'} has no 'Stra'" in message
    assert "did you mean 'Star'?" in message


def test_a_plugin_of_another_room_is_told_where_it_belongs(folder: Path) -> None:
    message = message_of("plugins.colours.own:Star")
    assert message == "found 'plugins.colours.own:Star'; a shape lies in plugins/shapes/"


@pytest.mark.parametrize(
    "name",
    [
        "plugins.shapes.own",
        "plugins.shapes:Star",
        "plugins.shapes.../own:Star",
        "plugins.shapes.own:Star.load",
        "plugins/shapes/own.py:Star",
        "os:system",
        "",
    ],
)
def test_what_is_not_the_name_of_a_plugin_is_an_unknown_name(folder: Path, name: str) -> None:
    """Nothing but a file of the room's folder is ever loaded."""
    assert "plugins.shapes.<module>:<name>" in message_of(name)
    with pytest.raises(ValueError, match="allowed"):
        SHAPES.load(name)


@pytest.mark.parametrize("content", [b"def (", b"\xff\xfe", b"x = 1\0"])
def test_a_plugin_that_is_not_python_is_told_with_its_path(folder: Path, content: bytes) -> None:
    (folder / "own.py").write_bytes(content)
    assert f"{folder / 'own.py'} cannot be read as Python" in message_of("plugins.shapes.own:Star")


def test_a_module_of_the_same_name_elsewhere_is_not_taken_for_the_plugin(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "own.py").write_text("Star = 1\n")
    other = tmp_path / "other"
    (other / "plugins/shapes").mkdir(parents=True)
    (other / "plugins/shapes/own.py").write_text("Star = 2\n")
    (other / "plugins/__init__.py").touch()
    monkeypatch.syspath_prepend(str(other))
    with pytest.raises(ValueError, match=r"was imported from .*other.*, expected"):
        SHAPES.load("plugins.shapes.own:Star")


def test_the_digest_of_a_plugin_is_of_its_file_wherever_parameters_name_it(folder: Path) -> None:
    (folder / "own.py").write_text("Star = 1\n")
    name = "plugins.shapes.own:Star"
    sha256 = hashlib.sha256(b"Star = 1\n").hexdigest()
    tree = {"a": {"b": name, "c": 1, "d": None}, "e": "round"}
    assert plugin_digests(tree) == {name: sha256}
    (folder / "own.py").write_text("Star = 2\n")
    assert plugin_digests(tree)[name] != sha256
    assert plugin_digests({"a": "round", "b": 3}) == {}


def test_choices_are_sorted_and_a_hint_needs_likeness() -> None:
    assert allowed("b", ["bb", "aa"]) == "allowed: aa, bb; did you mean 'bb'?"
    assert allowed("x", ["bb", "aa"]) == "allowed: aa, bb"


REGISTRIES = {
    f"{room}: {registry.kind}": registry
    for room in (
        "alignment",
        "autoencoder",
        "encoders",
        "evaluation",
        "features",
        "generators",
        "images",
    )
    for registry in vars(import_module(f"flowprior.{room}.names")).values()
    if isinstance(registry, Registry)
}


@pytest.mark.parametrize("name", REGISTRIES)
def test_all_that_the_package_names_is_defined_where_it_says(name: str) -> None:
    registry = REGISTRIES[name]
    assert name.startswith(f"{registry.room}: ")
    for each in registry:
        assert callable(registry.load(each)), each
