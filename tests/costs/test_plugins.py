"""Plugins in the plan and in preflight: counted where they run on the meta device, said so where they do not."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from flowprior.config.presets import resolve
from flowprior.config.schema import Params
from flowprior.config.yaml12 import read_yaml
from flowprior.costs.facts import assumed
from flowprior.costs.hardware import H100
from flowprior.costs.plan import describe
from flowprior.costs.plugin_check import REGISTRIES, plugins_of
from flowprior.costs.preflight import preflight
from flowprior.costs.stages import count
from flowprior.experiments.planned import with_settings

from .project import write_project

QUANTILES = {"align.objective": "plugins.alignment.quantiles:QuantileMatching"}
GAUSSIAN = {"generator.model": "plugins.generators.class_gaussian:ClassGaussian"}
EDGES = {"prior.source": "plugins.features.edges:edges"}
BLOBS = {
    "images.source": "plugins.images.blobs:open_blobs",
    "prior.source": "gaussian",
    "evaluation.judge": "none",
}
STUBBORN = '''
import torch
from torch import nn

from flowprior.autoencoder.vit import build_autoencoder
from flowprior.mar.model import MAR


class Stubborn:
    """Looks at values, which the meta device has not."""

    @classmethod
    def build(cls, *_, **__):
        return cls()

    def __call__(self, codes, draw):
        return codes.latents.sum() if float(codes.latents.sum()) > 0 else codes.latents.mean()


class StubbornMAR(nn.Module):
    @classmethod
    def build(cls, latents, settings):
        raise OSError("wants\\na file")

    @classmethod
    def from_config(cls, config):
        return cls()


def stubborn_autoencoder(shape, bottleneck, codebooks):
    autoencoder = build_autoencoder(shape, bottleneck, codebooks)
    autoencoder.encoder.register_forward_pre_hook(lambda module, given: float(given[0].sum()))
    return autoencoder


def strict(material):
    raise ValueError("never")
'''


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with the example plugins and one that no meta device holds, as working directory."""
    root = write_project(tmp_path_factory.mktemp("project"))
    for room in ("alignment", "generators", "autoencoder", "evaluation"):
        (root / "plugins" / room).mkdir(exist_ok=True)
        (root / "plugins" / room / "stubborn.py").write_text(STUBBORN, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.syspath_prepend(str(root))
        yield root


def params(root: Path, **changes: Any) -> Params:
    """The smoke preset with changes; `__` for a dot."""
    values = {key.replace("__", "."): value for key, value in changes.items()}
    tree = with_settings(read_yaml(root / "params.yaml"), {"preset": "smoke", **values})
    return resolve(root, tree).params


def with_plugin(root: Path, plugin: dict[str, str], **changes: Any) -> Params:
    return params(
        root, **{key.replace(".", "__"): value for key, value in plugin.items()}, **changes
    )


def test_an_objective_is_counted(root: Path) -> None:
    """It sorts, which is no matrix product: no operations, but none that could not be counted."""
    cfg = with_plugin(root, QUANTILES)
    work = count("train_ae", cfg, assumed(cfg))
    assert not work.uncounted
    assert work.parts["alignment"] == 0
    assert work.parts["autoencoder"] > 0


def test_a_generator_is_counted(root: Path) -> None:
    cfg = with_plugin(root, GAUSSIAN)
    facts = assumed(cfg)
    work = count("train_mar", cfg, facts)
    assert not work.uncounted
    numbers = 2 * 11 * cfg.train_ae.num_latents * cfg.project.dim
    assert work.disk_bytes == 4 * numbers
    sampling = count("sample_eval", cfg, facts)
    assert not sampling.uncounted
    assert sampling.parts["without guidance"] == sampling.parts["with guidance"] > 0


def test_of_a_source_of_features_the_plan_says_what_it_lacks(root: Path) -> None:
    cfg = with_plugin(root, EDGES)
    facts = assumed(cfg)
    text = describe(cfg, facts, H100, 1)
    for stage in ("extract_features", "project"):
        assert f"{stage}: not counted: prior.source plugins.features.edges:edges (how many" in text
    assert "in all at least" in text
    told = facts._replace(feature_vectors=1000, feature_dim=32)
    works = [count(stage, cfg, told) for stage in ("extract_features", "project")]
    assert [work.disk_bytes for work in works] == [2 * 32 * 1000, 4 * cfg.project.dim * 1000]
    assert not any(work.uncounted for work in works)


@pytest.mark.parametrize(
    ("plugin", "stages", "why"),
    [
        (
            {"align.objective": "plugins.alignment.stubborn:Stubborn"},
            {"train_ae": ["autoencoder"]},
            "RuntimeError: ",
        ),
        (
            {"generator.model": "plugins.generators.stubborn:StubbornMAR"},
            {"train_mar": [], "sample_eval": ["without guidance", "with guidance"]},
            "OSError: wants a file",
        ),
        (
            {"autoencoder.model": "plugins.autoencoder.stubborn:stubborn_autoencoder"},
            {
                "train_ae": [],
                "encode_latents": [],
            },
            "RuntimeError: ",
        ),
    ],
    ids=["objective", "generator", "autoencoder"],
)
def test_what_cannot_be_counted_is_said_so(
    root: Path, plugin: dict[str, str], stages: dict[str, list[str]], why: str
) -> None:
    cfg = with_plugin(root, plugin)
    facts = assumed(cfg)
    ((key, name),) = plugin.items()
    text = describe(cfg, facts, H100, 1)
    for stage, parts in stages.items():
        work = count(stage, cfg, facts)
        assert len(work.uncounted) == 1
        assert work.uncounted[0].startswith(f"{key} {name} ({why}")
        assert "\n" not in work.uncounted[0]
        assert list(work.parts) == parts
        assert f"{stage}: not counted: {work.uncounted[0]}" in text
    assert text.count("not counted: ") == len(stages)
    assert text.count(", in part") == len(stages)
    if "autoencoder" in key:
        assert count("encode_latents", cfg, facts).disk_bytes > 0
        assert count("train_mar", cfg, facts).cost.flops > 0


def test_errors_of_what_is_the_packages_own_are_not_swallowed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowprior.alignment.flows import FlowAlignment

    def broken(*_: object) -> torch.Tensor:
        raise KeyError("broken")

    monkeypatch.setattr(FlowAlignment, "__call__", broken)
    cfg = params(root)
    with pytest.raises(KeyError, match="broken"):
        count("train_ae", cfg, assumed(cfg))


# --- preflight --------------------------------------------------------------------------------------


def test_preflight_looks_at_every_plugin_first(root: Path) -> None:
    cfg = with_plugin(root, BLOBS | QUANTILES | GAUSSIAN, images__options={"count": 50})
    findings = {finding.name: finding for finding in preflight(cfg)}
    assert list(findings) == [
        "images.source plugins.images.blobs:open_blobs",
        "align.objective plugins.alignment.quantiles:QuantileMatching",
        "generator.model plugins.generators.class_gaussian:ClassGaussian",
        "images",
        "prior gaussian",
        "disk",
    ]
    assert all(finding.is_there for finding in findings.values()), findings
    assert "QuantileMatching, sha256 " in findings[[*findings][1]].says
    assert findings["images"].says == "40 train and 10 validation, 4 classes"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"prior__source": EDGES["prior.source"], "prior__options": {"share": 3}},
            "edges would be called with 1 argument, share=, but: got an unexpected keyword argument 'share'",
        ),
        (
            {"generator__model": "plugins.generators.class_gaussian:TokensOfClasses"},
            "it has no build",
        ),
        (
            {"generator__model": GAUSSIAN["generator.model"], "generator__options": {"depth": 3}},
            "build would be called with 2 arguments, depth=, but: got an unexpected keyword",
        ),
        ({"evaluation__judge": "plugins.evaluation.stubborn:strict"}, "it has no build"),
    ],
    ids=lambda x: " ".join(map(str, x)) if isinstance(x, dict) else "",
)
def test_preflight_says_what_a_plugin_lacks(root: Path, changes: dict[str, Any], said: str) -> None:
    cfg = params(root, **changes)
    ((key, name),) = plugins_of(cfg)
    finding = next(preflight(cfg))
    assert finding.name == f"{key} {name}"
    assert not finding.is_there
    assert said in finding.says


def test_a_plugin_that_does_not_import_is_missing(root: Path) -> None:
    path = root / "plugins/alignment/broken.py"
    path.write_text("import no_such_package\n\nclass Broken: ...\n", encoding="utf-8")
    finding = next(preflight(params(root, align__objective="plugins.alignment.broken:Broken")))
    assert not finding.is_there
    assert finding.says == "No module named 'no_such_package'"


def test_every_parameter_that_may_name_a_plugin_has_its_registry(root: Path) -> None:
    """A section that takes a plugin's name is known by its check, which knows the registry."""
    values = params(root).model_dump()
    for key, registry in REGISTRIES.items():
        section, name = key.split(".")
        assert values[section][name] in registry, key


def test_one_missing_thing_does_not_hide_the_others(root: Path) -> None:
    """What needs the images says so where they are missing."""
    images = {"images__source": "imagefolder", "prior__encoder": "timm"}
    cfg = with_plugin(root, EDGES, **images, evaluation__judge="none")
    plugin, no_images, no_prior = islice(preflight(cfg), 3)
    assert plugin.is_there
    assert not no_images.is_there
    assert "images.path" in no_images.says
    assert not no_prior.is_there
    assert no_prior.says == "needs the images, which are missing"
