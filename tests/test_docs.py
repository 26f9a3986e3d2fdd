"""README and docs: the snippet runs, paths and knobs are real, figures are those of the metrics."""

import functools
import re
from pathlib import Path

import pytest
import typer
import yaml

from flowprior import FlowPrior
from flowprior.alignment.names import OBJECTIVES
from flowprior.cli.app import app
from flowprior.config.presets import leaves, load_params
from flowprior.config.schema import Params
from flowprior.report.blocks import BLOCK, updated

from .pipeline.closure import ROOT
from .pipeline.workspace import read_committed

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
README = TEXTS["README.md"]
EVERYTHING = "\n".join(TEXTS.values())
COMMANDS = sorted(
    {
        line.split("  #")[0].strip()
        for text in TEXTS.values()
        for block in re.findall(r"```\n(.*?)```", text, flags=re.DOTALL)
        for line in block.splitlines()
        if re.match(r"(make|flowprior) ", line)
    }
)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 180


def test_the_snippet_on_somebody_elses_autoencoder_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed, but with a shorter fit."""
    (snippet,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.setattr(FlowPrior, "fit", functools.partial(FlowPrior.fit, steps=5, width=32))
    names: dict = {}
    exec(compile(snippet, "README.md", "exec"), names)
    assert names["nll"].shape == (64,)
    assert names["wanted"].shape == (16, 32)
    assert names["loss"].isfinite()


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.startswith("make ")])
def test_a_make_target_exists(command: str) -> None:
    target = command.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.startswith("flowprior ")])
def test_a_command_and_its_options_exist(command: str) -> None:
    name, *rest = command.split()[1:]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert name in commands
    known = {option for parameter in commands[name].params for option in parameter.opts}
    assert {word for word in rest if word.startswith("-")} <= known


def test_every_knob_that_is_set_exists() -> None:
    tree = load_params(ROOT).model_dump(mode="json")
    known = {key for key, _ in leaves(tree)} | set(tree)
    knobs = set(re.findall(r"-S '?\+?([\w.]+)=", EVERYTHING))
    assert {"align.weight", "prior.source", "preset"} <= knobs
    assert knobs <= known, knobs - known


def test_a_knob_with_a_plus_is_one_that_params_yaml_lacks() -> None:
    here = {key for key, _ in leaves(read_committed("params.yaml"))}
    for plus, key in re.findall(r"-S '?(\+?)([\w.]+)=", EVERYTHING):
        assert (key not in here) == bool(plus), key


def test_every_objective_is_told() -> None:
    text = TEXTS["docs/objectives.md"] + TEXTS["docs/parameters.md"]
    assert all(f"`{name}`" in text for name in OBJECTIVES)


def test_every_section_of_the_parameters_has_its_module() -> None:
    assert set(yaml.safe_load((ROOT / "params.yaml").read_text())) == set(Params.model_fields)


PATHS = sorted(
    set(re.findall(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|yaml|md|cff|toml))`", EVERYTHING))
    | set(
        re.findall(
            r"`((?:src|stages|tests|metrics|presets|plugins|examples|docs)/[\w./-]*)`", EVERYTHING
        )
    )
)
OF_A_RUN = ("data/", "metrics/costs/", "metrics/gpu/", "metrics/report.html", "dvc_plots/")
"""Where what a run writes lies."""


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_is_named_exists(path: str) -> None:
    names = ("names.py", "config.py")  # of any room
    assert path in names or path.startswith(OF_A_RUN) or (ROOT / path).exists()


@pytest.mark.parametrize("page", TEXTS)
def test_a_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", TEXTS[page]):
        assert ((ROOT / page).parent / target).exists(), target


def test_every_page_is_in_the_navigation() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    named = set(re.findall(r"[\w-]+\.md", str(nav)))
    assert named == {path.name for path in PAGES[1:]}


def test_every_room_is_in_the_readmes_tree() -> None:
    rooms = {
        path.name for path in (ROOT / "src/flowprior").iterdir() if (path / "__init__.py").exists()
    }
    assert all(f"{room}/" in README for room in rooms)


@pytest.mark.parametrize("page", TEXTS)
def test_marked_figures_are_those_of_the_committed_metrics(page: str) -> None:
    """`python -m flowprior.report.blocks README.md docs/*.md` would change nothing."""
    assert updated(TEXTS[page], ROOT) == TEXTS[page]


def test_a_figure_that_is_not_the_metrics_is_noticed() -> None:
    block = BLOCK.search(README)
    assert block
    wrong = README.replace(block[0], re.sub(r"\d\.\d+", "7.77", block[0]))
    assert wrong != README
    assert updated(wrong, ROOT) == README


def test_the_mission_s_pages_are_there() -> None:
    wanted = (
        "own-data own-autoencoder objectives tables scale-and-clusters speed what-survives-what"
    )
    for name in [*wanted.split(), "differences-from-the-paper", "contributing", "plugins"]:
        assert Path(ROOT / f"docs/{name}.md").is_file()
