"""The README: its snippet runs, its paths exist, its knobs are real, its figures are those of the metrics."""

import functools
import json
import re

import pytest
import yaml

from flowprior import FlowPrior
from flowprior.config import params
from flowprior.experiments.claims import summary
from flowprior.experiments.listing import listed, read_listing
from flowprior.experiments.results import load_all
from flowprior.report import readme
from flowprior.report.contents import numbers, plus_minus, runs_of

from .stages.closure import ROOT
from .stages.test_params import changed

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.split("  #")[0].split("# ")[0].strip()
    for language, block in BLOCKS
    if not language
    for line in block.splitlines()
    if re.match(r"(make|dvc|OMP_NUM_THREADS|source)\b", line)
]


def test_the_snippet_on_somebody_elses_autoencoder_runs(monkeypatch) -> None:
    """As printed, but with a shorter fit."""
    (snippet,) = [block for language, block in BLOCKS if language == "python"]
    monkeypatch.setattr(FlowPrior, "fit", functools.partial(FlowPrior.fit, steps=5, width=32))
    names: dict = {}
    exec(compile(snippet, "README.md", "exec"), names)
    assert names["nll"].shape == (64,)
    assert names["wanted"].shape == (16, 32)
    assert names["loss"].isfinite()


def test_there_are_commands() -> None:
    assert "make repro" in COMMANDS
    assert "dvc metrics diff" in COMMANDS


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_a_make_target_exists(command: str) -> None:
    target = command.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


KNOBS = re.findall(r"-S '?([\w.]+)=([^\s'`]+)", README) + re.findall(
    r"`((?:[\w.]+=[\w.]+ ?)+)`", README
)


def _settings() -> list[tuple[str, str]]:
    found = []
    for knob in KNOBS:
        if isinstance(knob, tuple):
            found += [(knob[0], value) for value in knob[1].split(",")]
        else:
            found += [tuple(part.split("=")) for part in knob.split()]
    return [(key, value) for key, value in found if key in _keys()]


def _keys(tree: dict | None = None, above: str = "") -> set[str]:
    tree = yaml.safe_load((ROOT / "params.yaml").read_text()) if tree is None else tree
    keys: set[str] = set()
    for key, value in tree.items():
        path = f"{above}{key}"
        keys |= _keys(value, f"{path}.") if isinstance(value, dict) else {path}
    return keys


def test_every_knob_that_is_set_exists() -> None:
    set_in_readme = {knob[0] for knob in re.findall(r"-S '?([\w.]+)=(\S+)", README)}
    assert {"align.weight", "prior.source"} <= set_in_readme <= _keys()


@pytest.mark.parametrize(("key", "value"), _settings())
def test_a_setting_of_the_readme_is_valid(key: str, value: str) -> None:
    tree = changed(key, yaml.safe_load(value))
    if (key, value) == ("prior.source", "file"):
        tree["prior"]["path"] = "/abs/features.npy"
    if key == "prior.path":
        tree["prior"]["source"] = "file"
    params.parse(tree)


@pytest.mark.parametrize("section", ["prior", "project", "autoencoder", "align"])
def test_the_table_of_knobs_names_every_choice(section: str) -> None:
    for name, field in params.Params.model_fields[section].annotation.model_fields.items():
        if "Literal" in str(field.annotation):
            (row,) = re.findall(rf"^\| `{section}\.{name}` \|(.*)\|$", README, flags=re.MULTILINE)
            assert set(field.annotation.__args__) == set(re.findall(r"`(\w+)`", row))


PATHS = sorted(
    set(re.findall(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|yaml|md|cff|toml|txt))`", README))
    | set(re.findall(r"`((?:src|stages|tests|data|metrics)/[\w./-]*)`", README))
    | set(re.findall(r"\]\((?!http|#)([^)]+)\)", README))
)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_of_the_readme_exists(path: str) -> None:
    made_by_a_run = path.startswith("data/")
    assert made_by_a_run or (ROOT / path).exists()


def test_a_section_that_the_readme_points_to_is_there() -> None:
    headings = re.findall(r"^#+ (.+)$", README, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    pointed_to = set(re.findall(r"\]\(#([^)]+)\)", README))
    assert pointed_to
    assert pointed_to <= anchors


def test_the_tree_of_the_readme_is_the_tree() -> None:
    (tree,) = [block for language, block in BLOCKS if "src/flowprior/\n" in block]
    inside = tree.split("src/flowprior/\n")[1].split("\ntests/")[0]
    for line in inside.splitlines():
        for name in re.findall(r"[\w.]+(?:\.py|/)", line.split("  ")[1]):
            assert (ROOT / "src/flowprior" / name).exists(), name
    listed = set(re.findall(r"(\w+)(?:\.py|/)", inside))
    real = {path.stem for path in (ROOT / "src/flowprior").iterdir() if path.suffix in ("", ".py")}
    assert real - {"__init__", "__pycache__", "py"} <= listed


def table_under(header: str) -> dict[str, list[str]]:
    """First cell to the other cells of each row of the table whose header line starts with the text."""
    lines = iter(README.splitlines())
    assert any(line.startswith(header) for line in lines), header
    next(lines)
    rows = (line.strip("|").split("|") for line in iter(lambda: next(lines), ""))
    return {cells[0].strip().strip("`"): [cell.strip() for cell in cells[1:]] for cells in rows}


def test_every_number_of_a_table_is_that_of_the_committed_metrics() -> None:
    """Results, objectives in the plane, the theory, the report: `python stages/readme.py` would change nothing."""
    assert len(readme.RESULT.findall(README)) >= 8
    assert readme.updated(README) == README


def test_a_result_that_is_not_the_metrics_is_noticed() -> None:
    """Plain or guided, of any row."""
    for row in readme.RESULT.finditer(README):
        for group in filter(row.group, (3, 4)):
            start, end = row.span(group)
            wrong = README[:start] + f"7{README[start:end]}" + README[end:]
            assert readme.updated(wrong) == README


@pytest.mark.parametrize("header", [readme.TOY_HEADER, readme.THEORY_HEADER])
def test_each_number_of_a_table_is_looked_at(header: str) -> None:
    """Every one of them, made wrong, is put right."""
    start = README.index(f"\n{header}") + 1
    end = README.index("\n\n", start)
    rows = README[start:end].split("\n")
    for at, row in enumerate(rows[2:], 2):
        words = 2 if header == readme.TOY_HEADER else 1
        cells = row.split("|")
        head, numbers = "|".join(cells[: words + 1]), "|".join(cells[words + 1 :])
        wrong = re.sub(r"\d(?=\D*$|\D+[\s(|])", "x", numbers).replace("x", "7")
        spoilt = README[:start] + "\n".join([*rows[:at], f"{head}|{wrong}", *rows[at + 1 :]])
        assert readme.updated(spoilt + README[end:]) == README


def test_the_tables_have_all_rows() -> None:
    rows = table_under(readme.TOY_HEADER)
    assert set(rows) == set(params.Align.model_fields["objective"].annotation.__args__)


def test_tables_of_the_report_are_here() -> None:
    """And what the claims came to; whole, as `make report` wrote them."""
    listing = read_listing()
    shown = readme.REPORTED.findall(README)
    tables = [
        listing.tables[name].title
        for name in ("priors", "operators", "weights", "objectives", "masks")
    ]
    assert shown == [*tables, "What holds here"]
    report = (ROOT / "metrics/report.md").read_text(encoding="utf-8")
    for claim in listing.claims:
        assert claim.says in README
        assert claim.says in report
    wrong = re.sub(r"(\| ae.*?\d)", r"\g<1>7", README, count=1)
    assert wrong != README
    assert readme.updated(wrong) == README


def test_the_benchmarks_of_a_machine_are_here() -> None:
    """All that is measured against a plain twin, and not otherwise than it was measured."""
    (machine,) = readme.BENCH.findall(README)
    found = readme.read(ROOT, f"bench_{machine}")
    compared = [one for one in found.values() if "ratio" in one]
    assert len(compared) >= 12
    for one in compared:
        assert f"| {one['what']} | {one['twin']} | {one['ratio']:.2f} |" in README
    wrong = README.replace(f"| {compared[0]['ratio']:.2f} |", "| 7.00 |")
    assert wrong != README
    assert readme.updated(wrong) == README


def test_the_committed_report_is_of_the_committed_results() -> None:
    """Table by table, as `make report` would write them."""
    listing = read_listing()
    report = (ROOT / "metrics/report.md").read_text(encoding="utf-8")
    runs = runs_of(listed(listing), load_all(ROOT))
    for name, rows in runs.items():
        for row, of_row in rows.items():
            if of_row:
                psnr = plus_minus(summary(numbers(of_row, "encode_latents.psnr_db")), 2)
                assert re.search(
                    rf"^\| {row}( †)?( \(n = \d\))? \| \**{re.escape(psnr)}\** \|",
                    report,
                    re.MULTILINE,
                ), (name, row)


def test_the_text_below_the_theory_has_its_numbers() -> None:
    metrics = json.loads((ROOT / "metrics/toy/theory_mixture.json").read_text())
    share = 100 * metrics["bound_above_density_share_targets_closed_form"]
    assert f"at {share:.0f}% of target samples" in README
    assert f"{metrics['bound_above_density_most_nats_targets_closed_form']:.1f} nats. Nor" in README
    assert (
        f"{metrics['irreducible_loss']:.3f} per dim, the trained one {metrics['held_out_loss']:.3f}"
        in README
    )
