"""Every script of the 2-D study on the smoke preset, and what it leaves."""

import json
from pathlib import Path

import pytest
import torch

from flowprior.core.io import load_tensors
from flowprior.prior.flow_prior import FlowPrior
from flowprior.toy.maps import common_loss
from flowprior.toy.theory import LOSSES

from .committed import study as committed_study
from .scripts import load_script

SMOKE = committed_study("preset", "smoke")
REGIONS = ("targets", "latents", "off_target")
study, theory, compare, gallery = map(load_script, ("study", "theory", "compare", "gallery"))


def alone(patch: pytest.MonkeyPatch) -> None:
    """No tracking, and checkpoints in the workspace itself."""
    patch.setenv("FLOWPRIOR_MLFLOW", "off")
    for name in ("DVC_ROOT", "FLOWPRIOR_HOME"):
        patch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in which all scripts have run on the smoke preset."""
    root = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        alone(patch)
        for target in SMOKE.targets:
            study.main(SMOKE, root, target)
        for target in SMOKE.exact:
            theory.main(SMOKE, root, target)
        for objective in SMOKE.objectives:
            compare.main(SMOKE, root, objective)
        gallery.main(SMOKE, root)
    return root


def test_every_script_leaves_flat_metrics(workspace: Path) -> None:
    paths = sorted((workspace / "metrics/toy").rglob("*.json"))
    assert len(paths) == len(SMOKE.targets) + len(SMOKE.exact) + len(SMOKE.objectives)
    for path in paths:
        metrics = json.loads(path.read_text())
        assert all(isinstance(value, int | float | str) for value in metrics.values()), path
        assert metrics["seed"] == 0


def test_costs_lie_apart_from_the_metrics(workspace: Path) -> None:
    """In a file of the same name, which git ignores."""
    metrics, costs = workspace / "metrics/toy", workspace / "metrics/costs/toy"
    names = {path.relative_to(metrics) for path in metrics.rglob("*.json")}
    assert {path.relative_to(costs) for path in costs.rglob("*.json")} == names
    for name in names:
        spent = json.loads((costs / name).read_text())
        assert spent["seconds"] > 0
        assert spent["peak_memory_mib"] > 0
        assert spent["machine"]["cores"] >= 1
        assert not {"seconds", "machine"} & json.loads((metrics / name).read_text()).keys()


def test_exact_densities_and_kernel_estimates_are_told_apart(workspace: Path) -> None:
    for target in SMOKE.targets:
        metrics = json.loads((workspace / f"metrics/toy/{target}.json").read_text())
        assert metrics["density"] == ("exact" if target in SMOKE.exact else "kde")
        assert ("within_mode_std_ratio" in metrics) == (target in SMOKE.exact)


def test_theory_reports_each_loss_in_each_region_for_both_velocities(workspace: Path) -> None:
    metrics = json.loads((workspace / "metrics/toy/theory_mixture.json").read_text())
    for coefficient in ("spearman", "pearson"):
        for loss in LOSSES:
            for region in REGIONS:
                for velocity in ("closed_form", "trained"):
                    key = f"{coefficient}_{loss}_{region}_{velocity}"
                    assert metrics[f"{key}_low"] <= metrics[key] <= metrics[f"{key}_high"]
    assert metrics["spearman_weighted_targets_closed_form"] > 0.99
    assert (
        metrics["spearman_alignment_targets_closed_form"]
        < metrics["spearman_alignment_minus_divergence_targets_closed_form"]
    )
    assert metrics["held_out_loss"] > metrics["irreducible_loss"] > 0.5


def test_theory_needs_a_density_in_closed_form(workspace: Path) -> None:
    with pytest.raises(ValueError, match=r"moons has no density in closed form; use one of mix"):
        theory.main(SMOKE, workspace, "moons")


def test_nothing_moves_points_without_an_objective(workspace: Path) -> None:
    history = load_tensors(workspace / "data/toy/objectives/none.safetensors")["history"]
    assert (history == history[0]).all()
    moved = load_tensors(workspace / "data/toy/objectives/dmd.safetensors")["history"]
    assert (moved[0] == history[0]).all()
    assert (moved[-1] != history[0]).any()


def test_the_studys_objective_does_what_it_does_in_the_comparison(workspace: Path) -> None:
    """A flow that was trained just now and one that was loaded pull alike."""
    of_study = load_tensors(workspace / "data/toy/mixture/points.safetensors")
    compared = load_tensors(workspace / f"data/toy/objectives/{SMOKE.align.objective}.safetensors")
    assert torch.equal(of_study["history"], compared["history"])
    assert torch.equal(of_study["steps"], compared["steps"])


def test_every_picture_is_drawn(workspace: Path) -> None:
    names = {path.stem for path in (workspace / "metrics/figures/toy").glob("*.png")}
    assert names == {
        *SMOKE.targets,
        *(f"{target}_path" for target in SMOKE.targets),
        *(f"theory_{target}" for target in SMOKE.exact),
        "objectives",
    }


def test_a_second_run_gives_the_same_bytes(workspace: Path, tmp_path: Path, monkeypatch) -> None:
    alone(monkeypatch)
    study.main(SMOKE, tmp_path, "mixture")
    for name in (
        "data/toy/mixture/points.safetensors",
        "data/toy/mixture/flow_prior/velocity.safetensors",
        "metrics/toy/mixture.csv",
        "metrics/toy/mixture.json",
        "metrics/figures/toy/mixture.png",
    ):
        assert (tmp_path / name).read_bytes() == (workspace / name).read_bytes()


def test_loss_maps_are_smooth_because_the_draws_are_common(workspace: Path) -> None:
    """Neighbouring points of a fine line differ by less than independent draws would make them."""
    velocity = FlowPrior.load(workspace / "data/toy/mixture/flow_prior").velocity
    line = torch.stack([torch.linspace(0, 0.1, 200), torch.zeros(200)], -1)
    losses = common_loss(velocity, line, 16, 0)
    assert losses.diff().abs().max() < 0.01
    independent = torch.stack([common_loss(velocity, line[:1], 16, seed)[0] for seed in range(20)])
    assert independent.std() > 5 * losses.diff().abs().max()


OWN = '''
"""An objective of one's own: the points are drawn to a place."""


class Towards:
    """Squared distance to a place."""

    def __init__(self, place):
        self.place = place

    @classmethod
    def build(cls, material, place=0.0):
        """Where to."""
        return cls(place)

    def __call__(self, codes, draw):
        return (codes.latents - self.place).square().mean()
'''


def test_an_objective_of_ones_own_is_studied_and_compared(tmp_path: Path, monkeypatch) -> None:
    alone(monkeypatch)
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "plugins/alignment").mkdir(parents=True)
    (tmp_path / "plugins/alignment/towards.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    name = "plugins.alignment.towards:Towards"
    cfg = SMOKE.model_copy(
        update={
            "align": SMOKE.align.model_copy(update={"objective": name, "options": {"place": 9.0}}),
            "objectives": [name],
        }
    )
    study.main(cfg, tmp_path, "mixture")
    compare.main(cfg, tmp_path, name)
    gallery.main(cfg, tmp_path)
    ends = [
        load_tensors(tmp_path / f"data/toy/{path}.safetensors")["history"][-1].mean()
        for path in ("mixture/points", f"objectives/{name}")
    ]
    starts = load_tensors(tmp_path / "data/toy/mixture/points.safetensors")["history"][0].mean()
    assert ends[0] > starts  # the study takes the options
    assert abs(ends[0] - ends[1]) > 0.1  # the comparison does without
    assert json.loads((tmp_path / "metrics/toy/mixture.json").read_text())["objective"] == name
