"""The 2-D study: its parameters, its pipeline file, and every script on the smoke preset."""

import json
import os
import subprocess
import sys
from pathlib import Path

import compare
import gallery
import pytest
import theory
import yaml

import study
from flowprior.config.messages import ParamsError, parse_as
from flowprior.config.yaml12 import read_yaml
from flowprior.toy.config import Study
from flowprior.toy.maps import load_flow
from flowprior.toy.points import common_loss, look_steps
from tests.pipeline.closure import ROOT, plugin_rooms, rooms

FOLDER = ROOT / "stages/toy"
PIPELINE = yaml.safe_load((FOLDER / "dvc.yaml").read_text(encoding="utf-8"))
STAGES = PIPELINE["stages"]
TREE = read_yaml(FOLDER / "params.yaml")


def changed(key: str, value: object) -> dict:
    """The committed parameters with one value replaced."""
    tree = read_yaml(FOLDER / "params.yaml")
    node = tree
    *above, last = key.split(".")
    for part in above:
        node = node[part]
    node[last] = value
    return tree


SMOKE = parse_as(Study, changed("preset", "smoke"))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A root in which all scripts have run on the smoke preset."""
    root = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWPRIOR_MLFLOW", "off")
        patch.delenv("DVC_ROOT", raising=False)
        for target in SMOKE.targets:
            study.main(SMOKE, root, target)
        for target in SMOKE.exact:
            theory.main(SMOKE, root, target)
        for objective in SMOKE.objectives:
            compare.main(SMOKE, root, objective)
        gallery.main(SMOKE, root)
    return root


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("targets", ["mixture", "grid", "moon"], ["targets.2", "moon", "moons"]),
        ("objectives", ["dmdd"], ["objectives.0", "dmdd", "dmd"]),
        ("align.objective", "flow", ["align.objective", "flow_prior"]),
        ("align.t_max", 1.0, ["align.t_max", "1"]),
        ("align.t_max", 0.0, ["align.t_max", "0"]),
        ("align.num_drws", 1, ["align.num_drws", "num_draws"]),
        ("preset", "paperr", ["preset", "paper"]),
        ("presets.cpu.points.count", 10, ["too few", "neighbours"]),
        ("presets.cpu.points.time_groups", 7, ["must divide", "count"]),
        ("presets.cpu.density.bandwidth", 0.0, ["bandwidth"]),
        ("targets", ["grid"], ["targets must hold mixture"]),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(key: str, value: object, says: list[str]) -> None:
    with pytest.raises(ParamsError) as error:
        parse_as(Study, changed(key, value))
    for part in says:
        assert part in str(error.value)


def test_a_script_without_its_argument_says_what_it_takes() -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / "study.py", "moonz"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "mixture, grid, moons" in done.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_rooms_that_a_script_imports(stage: str) -> None:
    script = f"stages/toy/{stage}.py"
    wanted = {script, *(f"src/flowprior/{room}" for room in rooms(ROOT / script))}
    wanted |= {f"plugins/{room}" for room in plugin_rooms(ROOT / script)}
    code = {dep for dep in STAGES[stage]["deps"] if not dep.startswith(("data/", "metrics/"))}
    assert code == wanted


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_a_script_is_read_on_one_screen(script: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("stage", STAGES)
def test_tracked_parameters_are_in_the_file(stage: str) -> None:
    ((file, keys),) = STAGES[stage]["params"][0].items()
    assert ROOT / file == FOLDER / "params.yaml"
    for key in keys:
        node = TREE
        for part in key.replace("${preset}", "cpu").split("."):
            node = node[part]


def test_the_matrices_are_the_lists_of_the_parameters() -> None:
    matrices = {stage: facts.get("matrix") for stage, facts in STAGES.items()}
    assert matrices == {
        "study": {"target": "${targets}"},
        "theory": {"target": "${exact}"},
        "compare": {"objective": "${objectives}"},
        "gallery": None,
    }


def test_the_committed_lock_has_every_item_of_the_matrices() -> None:
    lock = yaml.safe_load((FOLDER / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    assert len(lock) == len(TREE["targets"]) + len(TREE["exact"]) + len(TREE["objectives"]) + 1


def test_looks_are_from_the_start_to_the_end_and_dense_at_the_start() -> None:
    steps = look_steps(1000)
    assert steps[0] == 0
    assert steps[-1] == 1000
    assert steps == sorted(set(steps))
    assert steps[1] == 1
    assert look_steps(1) == [0, 1]


def test_every_script_leaves_flat_metrics(workspace: Path) -> None:
    found = sorted((workspace / "metrics/toy").rglob("*.json"))
    assert len(found) == len(SMOKE.targets) + len(SMOKE.exact) + len(SMOKE.objectives)
    for path in found:
        metrics = json.loads(path.read_text())
        assert all(isinstance(value, int | float | str) for value in metrics.values()), path
        assert metrics["seed"] == 0


def test_exact_densities_and_kernel_estimates_are_told_apart(workspace: Path) -> None:
    for target in SMOKE.targets:
        metrics = json.loads((workspace / f"metrics/toy/{target}.json").read_text())
        assert metrics["density"] == ("exact" if target in SMOKE.exact else "kde")
        assert ("within_mode_std_ratio" in metrics) == (target in SMOKE.exact)


def test_theory_reports_each_loss_in_each_region_for_both_velocities(workspace: Path) -> None:
    metrics = json.loads((workspace / "metrics/toy/theory_mixture.json").read_text())
    for coefficient in ("spearman", "pearson"):
        for loss in theory.LOSSES:
            for region in ("targets", "latents", "off_target"):
                for velocity in ("closed_form", "trained"):
                    key = f"{coefficient}_{loss}_{region}_{velocity}"
                    assert metrics[f"{key}_low"] <= metrics[key] <= metrics[f"{key}_high"]
    assert metrics["spearman_weighted_targets_closed_form"] > 0.99
    assert (
        metrics["spearman_alignment_targets_closed_form"]
        < metrics["spearman_alignment_minus_divergence_targets_closed_form"]
    )
    assert metrics["held_out_loss"] > metrics["irreducible_loss"] > 0.5


def test_nothing_moves_points_without_an_objective(workspace: Path) -> None:
    from flowprior.core.io import load_tensors

    history = load_tensors(workspace / "data/toy/objectives/none.safetensors")["history"]
    assert (history == history[0]).all()
    moved = load_tensors(workspace / "data/toy/objectives/dmd.safetensors")["history"]
    assert (moved[0] == history[0]).all()
    assert (moved[-1] != history[0]).any()


def test_every_picture_is_drawn(workspace: Path) -> None:
    names = {path.stem for path in (workspace / "metrics/figures/toy").glob("*.png")}
    assert names == {
        *SMOKE.targets,
        *(f"{target}_path" for target in SMOKE.targets),
        *(f"theory_{target}" for target in SMOKE.exact),
        "objectives",
    }


def test_a_second_run_gives_the_same_bytes(workspace: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("FLOWPRIOR_MLFLOW", "off")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    study.main(SMOKE, tmp_path, "mixture")
    for name in (
        "data/toy/mixture/points.safetensors",
        "data/toy/mixture/flow_prior/velocity.safetensors",
        "metrics/toy/mixture.csv",
        "metrics/figures/toy/mixture.png",
    ):
        assert (tmp_path / name).read_bytes() == (workspace / name).read_bytes()


def test_loss_maps_are_smooth_because_the_draws_are_common(workspace: Path) -> None:
    """Neighbouring points of a fine line differ by less than independent draws would make them."""
    import torch

    prior = load_flow(workspace, "mixture")
    line = torch.stack([torch.linspace(0, 0.1, 200), torch.zeros(200)], -1)
    losses = common_loss(prior, line, 16, 0)
    assert losses.diff().abs().max() < 0.01
    independent = torch.stack([common_loss(prior, line[:1], 16, seed)[0] for seed in range(20)])
    assert independent.std() > 5 * losses.diff().abs().max()
