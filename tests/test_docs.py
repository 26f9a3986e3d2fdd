"""README.md and docs/: examples run, paths and parameters exist, figures are those of the committed metrics."""

import functools
import itertools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from flowprior import FlowPrior
from flowprior.alignment.names import OBJECTIVES
from flowprior.autoencoder.names import BOTTLENECKS
from flowprior.cli.app import app
from flowprior.config.presets import leaves, resolve
from flowprior.encoders.names import ENCODERS
from flowprior.evaluation.names import JUDGES
from flowprior.experiments.planned import parse_settings, with_settings
from flowprior.experiments.tables_file import read_tables_file
from flowprior.features.names import SOURCES as FEATURES
from flowprior.generators.names import GENERATORS
from flowprior.images.names import SOURCES as IMAGES
from flowprior.report.blocks import BLOCK, updated

from .documents import PAGES, ROOT, RUN_ELSEWHERE, blocks, commands, commands_with_needs
from .pipeline.workspace import read_committed

README = PAGES["README.md"]
EVERYTHING = "\n".join(PAGES.values())
EXAMPLES = [block for block in blocks("python") if not block.needs]
SHOWN = sorted({command for _, command in commands()} | set(commands_with_needs()))

OF_A_RUN = ("data/", "metrics/costs/", "metrics/report.html", "dvc_plots/", "mlflow.db", ".ckpt/")
"""Where what a run writes lies."""
OF_A_USER = ("presets/photos.yaml", "job.sh")
"""What a reader makes by following a page."""


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 180


@pytest.mark.parametrize("page", sorted({block.page for block in EXAMPLES}))
def test_the_examples_in_python_run(
    page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As printed, but with a shorter fit, and where the files that they write are in nobody's way."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FlowPrior, "fit", functools.partial(FlowPrior.fit, steps=5, width=32))
    names: dict = {}
    for block in EXAMPLES:
        if block.page == page:
            exec(compile(block.body, page, "exec"), names)
    assert names["loss"].isfinite()
    if page == "README.md":
        assert names["nll"].shape == (64,)


def test_every_command_stands_in_a_block_that_is_run_or_says_what_it_needs() -> None:
    """A block without a language holds no commands, so that none goes unnoticed."""
    program = re.compile(r"(make|dvc|flowprior|git|pip|python|torchrun|mlflow|sbatch|cp|ln) ")
    for block in blocks():
        if block.language != "sh":
            assert not [line for line in block.body.splitlines() if program.match(line)], block
    assert "make repro" in SHOWN
    assert "dvc exp run -S align.weight=0.05" in SHOWN


@pytest.mark.parametrize("command", RUN_ELSEWHERE)
def test_what_runs_elsewhere_is_shown_and_runs_there(command: str) -> None:
    place, text = RUN_ELSEWHERE[command]
    assert command in {shown for _, shown in commands()}
    assert text in (ROOT / place).read_text(encoding="utf-8")


@pytest.mark.parametrize("command", [one for one in SHOWN if one.startswith("make ")])
def test_a_make_target_exists(command: str) -> None:
    target = command.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("command", [one for one in SHOWN if one.startswith("flowprior ")])
def test_a_command_and_its_options_exist(command: str) -> None:
    words = iter(shlex.split(command)[1:])
    found = typer.main.get_command(app)
    while hasattr(found, "commands"):  # a group, as `flowprior prior`
        found = found.commands[next(words)]
    options = {option for parameter in found.params for option in parameter.opts}
    assert {word.partition("=")[0] for word in words if word.startswith("-")} <= options


def settings(command: str) -> list[str]:
    """What a command sets by -S or --set."""
    words = shlex.split(command)
    return [after for word, after in itertools.pairwise(words) if word in ("-S", "--set")]


def inline_settings() -> Iterator[str]:
    """Settings in backticks, such as rows of the paper's tables: `align.objective=none`."""
    for text in re.findall(r"`([^`\n]+)`", EVERYTHING):
        for word in text.split():
            if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+=[\w.]+", word):
                yield word


SETTINGS = sorted(
    {
        f"{key}={value}"
        for setting in (
            *(one for command in SHOWN for one in settings(command)),
            *inline_settings(),
        )
        for key, _, values in [setting.partition("=")]
        for value in values.split(",")
        if value not in ("photos", "...")
    }
)


def test_there_are_settings() -> None:
    assert {"align.weight=0.05", "preset=imagenet", "prior.source=file"} <= set(SETTINGS)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_is_valid_and_has_a_plus_where_params_yaml_lacks_it(setting: str) -> None:
    tree = read_committed("params.yaml")
    here = {key for key, _ in leaves(tree)}
    ((key, value),) = parse_settings([setting]).items()
    assert (key in here) != setting.startswith("+"), setting
    if "plugins." in setting:
        return  # the file is copied there first
    goes_with = {
        "prior.source": {"prior.path": "features.npy"} if value == "file" else {},
        "prior.path": {"prior.source": "file"},
        "images.path": {"preset": "imagenet"},
        "project.dim": {"preset": "imagenet"},
    }
    resolve(ROOT, with_settings(tree, {key: value, **goes_with.get(key, {})}))


@pytest.mark.parametrize(
    ("knob", "names"),
    [
        ("prior.source", FEATURES),
        ("prior.encoder", ENCODERS),
        ("project.operator", ("random", "avg_pool", "pca")),
        ("autoencoder.bottleneck", BOTTLENECKS),
        ("align.objective", OBJECTIVES),
        ("generator.model", GENERATORS),
        ("evaluation.judge", JUDGES),
        ("images.source", IMAGES),
    ],
)
def test_the_table_of_knobs_names_every_choice(knob: str, names) -> None:
    (row,) = re.findall(
        rf"^\| `{re.escape(knob)}` \|(.*)\|$", PAGES["docs/parameters.md"], flags=re.MULTILINE
    )
    assert set(names) <= set(re.findall(r"`(\w+)`", row))


def test_every_objective_is_in_the_table_in_the_plane() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGES["docs/objectives.md"], flags=re.MULTILINE)
    assert set(rows) >= set(OBJECTIVES)


def test_presets_are_told() -> None:
    shipped = {path.stem for path in (ROOT / "presets").glob("*.yaml")}
    assert all(f"`{name}`" in PAGES["docs/parameters.md"] for name in shipped)


def test_dotted_names_of_parameters_exist() -> None:
    """`train_ae.steps` and the like, wherever they stand in backticks."""
    params = resolve(ROOT, read_committed("params.yaml")).params.model_dump(mode="json")
    known = {key for key, _ in leaves(params)}
    sections = {name for name, value in params.items() if isinstance(value, dict)}
    metrics = set()
    for path in (ROOT / "metrics").glob("*.json"):
        metrics |= {f"{path.stem}.{name}" for name in json.loads(path.read_text())}
    for name in re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)`", EVERYTHING):
        section = name.split(".")[0]
        if section in sections and not name.endswith((".json", ".py", ".yaml")):
            inner = any(key.startswith(f"{name}.") for key in known)
            of_the_library = section == "prior" and hasattr(FlowPrior, name.partition(".")[2])
            assert name in known | metrics or inner or of_the_library, name


PATHS = sorted(
    {
        path.rstrip("*").rstrip("/")
        for path in re.findall(r"`((?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:yaml|md|cff|toml))`", EVERYTHING)
        if not path.startswith(("refs/", "hf-hub:"))
    }
)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_is_named_exists(path: str) -> None:
    of_a_run = f"{path}/".startswith(OF_A_RUN) or path in OF_A_USER
    in_the_package = (ROOT / "src/flowprior" / path).exists()
    assert of_a_run or in_the_package or (ROOT / path).exists()


@pytest.mark.parametrize("page", PAGES)
def test_a_link_leads_somewhere(page: str) -> None:
    for target, anchor in re.findall(r"\]\((?!http)([^)#\s]*)#?([^)\s]*)\)", PAGES[page]):
        path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}
            assert anchor in slugs


def test_every_page_is_in_the_navigation_and_in_the_readme() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}
    assert set(re.findall(r"[\w-]+\.md", str(site["nav"]))) == pages
    assert all(f"docs/{page}" in README for page in pages - {"index.md"})


def test_the_site_takes_nothing_from_the_network() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert site["theme"]["font"] is False
    assert not {"extra_javascript", "repo_url"} & set(site)
    assert "mermaid" not in EVERYTHING


def test_every_room_is_in_the_readmes_tree_and_nothing_else() -> None:
    rooms = {
        path.name for path in (ROOT / "src/flowprior").iterdir() if (path / "__init__.py").exists()
    }
    tree = next(block.body for block in blocks() if "src/flowprior/\n" in block.body)
    assert set(re.findall(r"^  (\w+)/ ", tree, flags=re.MULTILINE)) == rooms


@pytest.mark.parametrize("page", PAGES)
def test_figures_between_marks_are_those_of_the_committed_metrics(page: str) -> None:
    """`python -m flowprior.report.blocks README.md docs/*.md` would change nothing."""
    assert updated(PAGES[page], ROOT) == PAGES[page]


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(PAGES[page])])
def test_a_figure_that_is_not_the_metrics_is_put_right(page: str) -> None:
    for block in BLOCK.finditer(PAGES[page]):
        start, end = block.span()
        wrong = re.sub(r"\d\.\d+", "7.77", block[0])
        assert wrong != block[0]
        assert updated(PAGES[page][:start] + wrong + PAGES[page][end:], ROOT) == PAGES[page]


def test_all_tables_of_the_report_are_shown_with_all_claims() -> None:
    shown = set(re.findall(r"<!-- report: (.+?) -->", PAGES["docs/tables.md"]))
    listed = read_tables_file(ROOT / "tables.yaml")
    assert shown == {table.title for table in listed.tables.values()} | {"What holds here"}
    assert all(claim.says in PAGES["docs/tables.md"] for claim in listed.claims)


def test_the_text_below_the_theory_has_its_numbers() -> None:
    page = " ".join(PAGES["docs/objectives.md"].split())
    found = json.loads((ROOT / "metrics/toy/theory_mixture.json").read_text())
    share = 100 * found["bound_above_density_share_targets_closed_form"]
    assert f"at {share:.0f}% of target samples" in page
    nats = found["bound_above_density_most_nats_targets_closed_form"]
    assert f"by up to {nats:.1f} nats" in page
    losses = (
        f"{found['irreducible_loss']:.3f} per dim, the trained one {found['held_out_loss']:.3f}"
    )
    assert losses in page


def test_numbers_in_the_text_are_those_of_the_experiments() -> None:
    """The few that stand outside the tables."""
    paths = sorted((ROOT / "metrics/experiments").glob("ae_paper_masks-s*.json"))
    fds = [json.loads(path.read_text())["metrics"]["sample_eval.fd_digits"] for path in paths]
    assert f"runs from {min(fds):.0f} to {max(fds):.0f} over three seeds" in " ".join(
        PAGES["docs/tables.md"].split()
    )
    fresh = json.loads((ROOT / "metrics/toy/objectives/none.json").read_text())
    said = f"{fresh['coverage_control']:.2f} and {fresh['recall_control']:.2f} for fresh samples"
    assert said in " ".join(PAGES["docs/objectives.md"].split())
