"""The README: its snippet runs, its paths exist, its knobs are real, its figures are those of the metrics."""

import functools
import json
import re

import pytest
import yaml

import params
from flowprior import FlowPrior

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
    | set(re.findall(r"\]\((?!http)([^)]+)\)", README))
)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_of_the_readme_exists(path: str) -> None:
    made_by_a_run = path.startswith("data/")
    assert made_by_a_run or (ROOT / path).exists()


def test_the_tree_of_the_readme_is_the_tree() -> None:
    (tree,) = [block for language, block in BLOCKS if "src/flowprior/\n" in block]
    inside = tree.split("src/flowprior/\n")[1].split("\ntests/")[0]
    for line in inside.splitlines():
        for name in re.findall(r"[\w.]+(?:\.py|/)", line.split("  ")[1]):
            assert (ROOT / "src/flowprior" / name).exists(), name
    listed = set(re.findall(r"(\w+)(?:\.py|/)", inside))
    real = {path.stem for path in (ROOT / "src/flowprior").iterdir() if path.suffix in ("", ".py")}
    assert real - {"__init__", "__pycache__", "py"} <= listed


def test_the_results_are_those_of_the_committed_metrics() -> None:
    """Each row of the table names a metric and shows its value, rounded as printed."""
    rows = re.findall(
        r"^\| `(\w+)\.(\w+)` \| ([-\d.]+)(?: \| ([-\d.]+))? \|", README, flags=re.MULTILINE
    )
    assert len(rows) >= 8
    for stage, name, value, guided in rows:
        metrics = json.loads((ROOT / f"metrics/{stage}.json").read_text())
        for key, shown in ((name, value), (f"{name}_guided", guided)):
            if shown:
                digits = len(shown.partition(".")[2])
                assert f"{metrics[key]:.{digits}f}" == shown, key


def table_under(header: str) -> dict[str, list[str]]:
    """First cell to the other cells of each row of the table whose header line starts with the text."""
    lines = iter(README.splitlines())
    assert any(line.startswith(header) for line in lines), header
    next(lines)
    rows = (line.strip("|").split("|") for line in iter(lambda: next(lines), ""))
    return {cells[0].strip().strip("`"): [cell.strip() for cell in cells[1:]] for cells in rows}


def shows(value: float, cell: str) -> bool:
    """The cell is the value, rounded as printed."""
    return f"{value:.{len(cell.partition('.')[2])}f}" == cell


TOY_COLUMNS = ("within_mode_std_ratio", "coverage", "recall", "nll_gap", "seconds")
DIGITS_COLUMNS = (
    "encode_latents.psnr_db",
    "encode_latents.std_ratio_median",
    "encode_latents.latent_recall",
    "encode_latents.nll_gap_nats",
    "encode_latents.linear_probe_accuracy",
    "sample_eval.fd_digits",
    "sample_eval.fd_digits_guided",
    "sample_eval.label_agreement",
    "sample_eval.label_agreement_guided",
)


def test_the_table_of_objectives_is_that_of_the_study() -> None:
    """All ten of them, each with its committed metrics."""
    rows = table_under("| objective | pulls by |")
    assert set(rows) == set(params.Align.model_fields["objective"].annotation.__args__)
    for name, (_, *cells) in rows.items():
        metrics = json.loads((ROOT / f"metrics/toy/objectives/{name}.json").read_text())
        assert len(cells) == len(TOY_COLUMNS)
        for key, cell in zip(TOY_COLUMNS, cells, strict=True):
            assert shows(metrics[key], cell), (name, key)


def test_the_table_of_objectives_on_digits_is_that_of_its_runs() -> None:
    table = json.loads((ROOT / "metrics/objectives.json").read_text())
    rows = table_under("| objective | PSNR, dB |")
    assert rows.keys() == table.keys()
    for name, cells in rows.items():
        for key, cell in zip(DIGITS_COLUMNS, cells, strict=True):
            assert shows(table[name][key], cell), (name, key)
    committed = json.loads((ROOT / "metrics/encode_latents.json").read_text())
    assert table["flow_prior"]["encode_latents.psnr_db"] == committed["psnr_db"]


def test_the_table_of_the_theory_is_that_of_the_study() -> None:
    """Spearman's coefficients, closed form and trained, and the numbers of the text below it."""
    metrics = json.loads((ROOT / "metrics/toy/theory_mixture.json").read_text())
    rows = table_under("| | target samples | the pulled latents |")
    losses = ("alignment", "alignment_minus_divergence", "weighted")
    for loss, cells in zip(losses, rows.values(), strict=True):
        for region, cell in zip(("targets", "latents", "off_target"), cells, strict=True):
            exact, trained = re.fullmatch(r"(\S+) \((\S+)\)", cell).groups()
            assert shows(metrics[f"spearman_{loss}_{region}_closed_form"], exact)
            assert shows(metrics[f"spearman_{loss}_{region}_trained"], trained)
    share = 100 * metrics["bound_above_density_share_targets_closed_form"]
    assert f"at {share:.0f}% of target samples" in README
    assert f"{metrics['bound_above_density_most_nats_targets_closed_form']:.1f} nats. Nor" in README
    assert (
        f"{metrics['irreducible_loss']:.3f} per dim, the trained one {metrics['held_out_loss']:.3f}"
        in README
    )
