"""Made-up results of all experiments of tables.yaml, and the report of them."""

import io
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from flowprior.config.versions import VERSIONS
from flowprior.config.yaml12 import read_yaml
from flowprior.experiments.planned import Entry, Experiment, entries, experiments
from flowprior.experiments.results import Result
from flowprior.experiments.tables_file import TablesFile, read_tables_file
from flowprior.report import contents
from flowprior.report.contents import Report, build
from flowprior.report.ledger import ObjectiveCost, StageCost

ROOT = Path(__file__).parents[2]
LOST, OUTDATED, RESUMED = "pca", "kl-s1", "ae-s2"
"""A row without results, a result of another version, and one of which other code began a stage."""
Results = dict[str, Result]
STAGE_COSTS = [
    StageCost("train_ae", 69, 45.0, 30.0, 45.0, 1330.0, 1000.0, 2000.0),
    StageCost("train_mar", 0, None, None, None, 0.0, None, None),
]
OBJECTIVE_COSTS = [
    ObjectiveCost("none", 9, 37.5, 0.0, 0.0),
    ObjectiveCost("plugin", 3, 50.0, None, None),
]


def shipped(tree: dict[str, Any], preset: Mapping[str, Any]) -> None:
    """Put the preset's value wherever it has one into the tree of params.yaml, whatever a user set there."""
    for key, value in preset.items():
        if isinstance(value, dict):
            shipped(tree.get(key, {}), value)
        elif key in tree:
            tree[key] = "preset"


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with presets, tables.yaml and a params.yaml that no user has changed where it matters here."""
    root = tmp_path_factory.mktemp("report")
    shutil.copytree(ROOT / "presets", root / "presets")
    shutil.copy(ROOT / "tables.yaml", root)
    tree: Any = read_yaml(ROOT / "params.yaml")
    preset: Any = read_yaml(ROOT / "presets/digits.yaml")
    shipped(tree, preset)
    tree["align"] |= {"objective": "flow_prior", "num_draws": 4, "fake_updates": 5}
    tree["autoencoder"]["bottleneck"] = "plain"
    tree["prior"]["source"] = "semantic"
    (root / "params.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def file(root: Path) -> TablesFile:
    """The tables file."""
    return read_tables_file(root / "tables.yaml")


@pytest.fixture(scope="session")
def rows(root: Path, file: TablesFile) -> list[Entry]:
    """Its entries."""
    return entries(file, root)


@pytest.fixture(scope="session")
def made_up(rows: list[Entry]) -> Callable[..., Results]:
    """A function of results for all experiments; its keywords are what a row adds to the Fréchet distance."""

    def results(**effects: float) -> Results:
        dice = np.random.default_rng(0)
        return {
            one.name: made_up_result(one, effects.get(one.name.rsplit("-s", 1)[0], 0.0), dice)
            for one in experiments(rows)
        }

    return results


@pytest.fixture(scope="session")
def report(
    root: Path, file: TablesFile, rows: list[Entry], made_up: Callable[..., Results]
) -> Report:
    """The semantic prior is far better than all others; a row is lost, a result outdated; costs are made up."""
    results = {k: v for k, v in made_up(semantic=-12.0, discrete=5.0).items() if LOST not in k}
    results[OUTDATED] = results[OUTDATED]._replace(versions={**VERSIONS, "train_mar": 0})
    with pytest.MonkeyPatch.context() as patch:  # counting takes seconds, and has tests of its own
        patch.setattr(contents, "stage_costs", lambda *_: STAGE_COSTS)
        patch.setattr(contents, "objective_costs", lambda *_: OBJECTIVE_COSTS)
        return build(root, file, rows, results)


def made_up_result(one: Experiment, effect: float, dice: np.random.Generator) -> Result:
    """The result of an experiment, current in all that made it."""
    pulled = one.params["train_ae"]["align"]["objective"] != "none"
    metrics: dict[str, Any] = {
        "encode_latents.psnr_db": 24 + dice.normal(0, 0.1),
        "encode_latents.rfd_digits": 2.0,
        "encode_latents.std_ratio_median": 0.3 + dice.normal(0, 0.01),
        "encode_latents.latent_recall": 0.1,
        "encode_latents.coverage": 0.1,
        "encode_latents.nll_gap_nats": -1.5,
        "encode_latents.linear_probe_accuracy": 0.97,
        "encode_latents.verdict": "collapsed" if one.seed == 0 else "narrow",
        "encode_latents.num_images": 359,
        "sample_eval.fd_digits": 20 + effect + dice.normal(0, 0.5),
        "sample_eval.fd_digits_guided": 10 + dice.normal(0, 0.5),
        "sample_eval.label_agreement": 0.9,
        "sample_eval.label_agreement_guided": 0.95,
        "sample_eval.num_samples": 1000,
        "sample_eval.num_real": 359,
        "sample_eval.extractor": "digits",
        "sample_eval.guidance_scale": 2.0,
    }
    kinds, ends = ("pearson", "spearman"), ("", "_low", "_high")
    metrics |= {f"train_ae.{kind}_r5{end}": 0.99 for kind in kinds for end in ends}
    curve = {
        "step": [50.0, 100.0],
        "alignment_loss": [2.0, 1.0 + dice.normal(0, 0.1)],
        "mean_log_r5": [0.0, -1.0],
    }
    return Result(
        name=one.name,
        preset=one.preset,
        seed=one.seed,
        settings=one.settings,
        params=one.params,
        versions=VERSIONS,
        plugins=one.plugins,
        commit="",
        machine={"cpu": "a processor", "threads": 1, "torch": "2", "python": "3"},
        ran=["train_ae"],
        resumed={"train_mar": "abc"} if one.name == RESUMED else {},
        metrics=metrics,
        costs={
            "train_ae.seconds": 45.0 if pulled else 30.0,
            "train_ae.peak_memory_mib": 1000.0,
        },
        curves={"alignment": curve},
        sheets={"samples": png(), "reconstructions": png()},
    )


def png() -> bytes:
    """A contact sheet."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((91, 73), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()
