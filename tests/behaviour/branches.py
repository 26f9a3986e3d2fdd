"""What each stage does in each of its branches: a few steps at the smallest size, as numbers.

python -m tests.behaviour          compare with what is recorded
python -m tests.behaviour --record write it anew, after a stage's VERSION was raised or a branch was added
"""

import csv
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image

from flowprior.config.presets import resolve
from flowprior.config.schema import Params
from flowprior.config.versions import VERSIONS
from flowprior.images.names import DIGITS_PATH

ROOT = Path(__file__).resolve().parents[2]
RECORDED = Path(__file__).with_name("recorded.json")
TOLERANCE = 2e-3
"""Relative, and absolute below 1: what another processor, library or number of threads may differ by."""
SHORT = {"steps": 4, "log_steps": 2, "checkpoint_steps": 4}
COUNTED = (
    "c2st",
    "pearson",
    "spearman",
    "precision",
    "recall",
    "coverage",
    "density",
    "probe",
    "agreement",
)
"""In the names of metrics that count or rank: a last digit of what they count can make them jump."""


class Branch(NamedTuple):
    """One way through a stage.

    Attributes:
        stage: Its name.
        name: What is different.
        settings: Dotted keys and values on top of the smoke preset.
    """

    stage: str
    name: str
    settings: Mapping[str, Any]


def branches() -> list[Branch]:
    """All of them; those of a stage start from what its first branch found."""
    found = [Branch("extract_features", "semantic", {})]
    for source in ("low_level", "discrete", "gaussian", "shuffled"):
        found.append(Branch("extract_features", source, {"prior.source": source}))
    for operator in ("random", "avg_pool", "pca"):
        found.append(Branch("project", operator, {"project.operator": operator}))
    for name, settings in (
        ("fp32", {}),
        ("bf16", {"precision": "bf16"}),
        ("accumulate", {"accumulate": 2}),
    ):
        found.append(
            Branch("train_flow", name, {f"train_flow.{k}": v for k, v in settings.items()})
        )
    found.append(Branch("train_ae", "flow_prior", {}))
    for objective in (
        "none",
        "likelihood",
        "elbo",
        "sds",
        "dmd",
        "sliced_w2",
        "mmd",
        "moments",
        "kl",
    ):
        found.append(Branch("train_ae", objective, {"align.objective": objective}))
    posterior = {"autoencoder.bottleneck": "kl", "align.objective": "kl"}
    found.append(Branch("train_ae", "kl bottleneck", posterior))
    found.append(Branch("train_ae", "softvq bottleneck", {"autoencoder.bottleneck": "softvq"}))
    found.append(Branch("train_ae", "bf16", {"train_ae.precision": "bf16"}))
    found.append(Branch("train_ae", "accumulate", {"train_ae.accumulate": 2}))
    found.append(Branch("train_ae", "layer_scale", {"train_ae.layer_scale": 0.1}))
    found.append(Branch("train_ae", "LPIPS and GAN", PHOTOGRAPHS))
    found.append(Branch("encode_latents", "fp32", {}))
    found.append(
        Branch(
            "encode_latents",
            "flip, bf16",
            {"encode_latents.flip": True, "encode_latents.precision": "bf16"},
        )
    )
    found.append(Branch("train_mar", "matrices", {}))
    for decay in ("linear", "authors"):
        found.append(Branch("train_mar", decay, {"train_mar.decay": decay}))
    found.append(Branch("train_mar", "bf16", {"train_mar.precision": "bf16"}))
    found.append(Branch("train_mar", "accumulate", {"train_mar.accumulate": 2}))
    found.append(Branch("sample_eval", "heun", {}))
    found.append(
        Branch("sample_eval", "churn", {"sample_eval.solver": "euler", "sample_eval.churn": 0.5})
    )
    found.append(
        Branch(
            "sample_eval",
            "fewer steps",
            {"sample_eval.final_head_steps": 2, "sample_eval.temperature": 0.9},
        )
    )
    found.append(
        Branch("sample_eval", "guidance", {"guidance.schedule": "constant", "guidance.low": 0.3})
    )
    return found


PHOTOGRAPHS = {
    "prior.source": "gaussian",
    "images.source": "imagefolder",
    "images.path": "data/images/photographs",
    "images.size": 32,
    "prior.encoder": "timm",
    "evaluation.judge": "none",
    "train_ae.patch_size": 8,
    "train_ae.batch_images": 4,
    "train_ae.augment": "crop_flip",
    "train_ae.perceptual": {"weight": 1.0, "warmup_steps": 1, "pretrained": False},
    "train_ae.adversarial.weight": 0.2,
    "train_ae.adversarial.start_step": 1,
    "train_ae.adversarial.pretrained": False,
    "train_ae.adversarial.backbone": "vit_tiny_patch16_224",
}
"""Settings under which every loss of images is on."""


def observe(workspace: Path) -> Iterator[tuple[Branch, dict[str, float]]]:
    """Run all branches in a workspace, one after the other; what each gave."""
    sys.path.insert(0, str(ROOT / "stages"))
    os.environ["FLOWPRIOR_MLFLOW"] = "off"
    (workspace / "presets").mkdir(parents=True)
    for name in ("presets/smoke.yaml", "params.yaml", "dvc.yaml"):
        (workspace / name).write_bytes((ROOT / name).read_bytes())
    write_photographs(workspace / "data/images/photographs")
    first: set[str] = set()
    for branch in branches():
        kept = branch.stage not in first
        first.add(branch.stage)
        with trial(workspace, kept) as root:
            cfg = parameters(workspace, branch.settings)
            if not cfg.on_digits:  # targets of digits do not go with other images
                for name in ("features", "targets", "flow_prior"):
                    (root / "data" / name).unlink()
                for stage in ("extract_features", "project", "train_flow"):
                    run(stage, cfg, root, workspace)
            run(branch.stage, cfg, root, workspace)
            yield branch, numbers(root, branch.stage)


def run(stage: str, cfg: Params, root: Path, workspace: Path) -> None:
    """A stage in this process, on one thread."""
    AcceleratorState._reset_state(reset_partial_state=True)  # else one precision a process
    with threads(1), in_folder(workspace):
        __import__(stage).main(cfg, root)


@contextmanager
def trial(workspace: Path, kept: bool) -> Iterator[Path]:
    """A workspace with links to the data of the first branches; itself where this branch is a first one."""
    if kept:
        yield workspace
        return
    root = workspace / "trial"
    (root / "data").mkdir(parents=True)
    for folder in (workspace / "data").iterdir():
        (root / "data" / folder.name).symlink_to(folder)
    yield root
    os.rename(root, workspace / f"trial-{len(list(workspace.iterdir()))}")


def parameters(workspace: Path, settings: Mapping[str, Any]) -> Params:
    """The smoke preset, cut short, with the settings."""
    tree = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    tree = science(tree)
    tree["preset"] = "smoke"
    short = {
        f"{stage}.{k}": v
        for stage in ("train_flow", "train_ae", "train_mar")
        for k, v in SHORT.items()
    }
    short |= {"train_ae.eval_steps": 2, "train_ae.eval_latents": 200, "sample_eval.num_samples": 40}
    for key, value in {**short, **settings}.items():
        *above, last = key.split(".")
        section = tree
        for name in above:
            section = section.setdefault(name, {})
        if isinstance(value, Mapping) and isinstance(section.get(last), Mapping):
            section[last] = {**section[last], **value}
        else:
            section[last] = value
    return resolve(workspace, tree).params


def science(tree: dict[str, Any]) -> dict[str, Any]:
    """params.yaml with the values that the record was made with, whatever someone is trying out."""
    tree["seed"] = 0
    tree["prior"] |= {"source": "semantic", "path": None, "model": None}
    tree["project"] |= {"operator": "random"}
    tree["autoencoder"] |= {"model": "vit", "bottleneck": "plain"}
    tree["align"] |= {"objective": "flow_prior", "weight": 0.01, "num_draws": 4, "t_max": 0.95}
    tree["generator"] |= {"model": "mar"}
    tree["guidance"] |= {"scale": 2.0, "schedule": "linear", "low": 0.0, "high": 1.0}
    tree["images"] |= {"source": "preset", "path": DIGITS_PATH, "split_seed": 0}
    tree["evaluation"] |= {"judge": "preset", "weights": None, "reference": None}
    return tree


def numbers(root: Path, stage: str) -> dict[str, float]:
    """Metrics and training curve of a stage, flat."""
    facts = json.loads((root / f"metrics/{stage}.json").read_text(encoding="utf-8"))
    found = {
        name: float(value)
        for name, value in facts.items()
        if isinstance(value, int | float) and not any(word in name for word in COUNTED)
    }
    curve = root / f"metrics/curves/{stage}.csv"
    if curve.is_file():
        with curve.open() as file:
            for row in csv.DictReader(file):
                found |= {f"{k} at {row['step']}": float(v) for k, v in row.items() if k != "step"}
    return found


def write_photographs(folder: Path) -> None:
    """A small tree of coloured noise."""
    draw = np.random.default_rng(0)
    for index in range(40):
        path = folder / f"class{index % 2}" / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """With another working directory."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def changes(recorded: Mapping[str, Any], branch: Branch, now: Mapping[str, float]) -> list[str]:
    """In what a branch differs from its record, in words; empty where it does not."""
    stage = branch.stage
    what_to_do = "`python -m tests.behaviour --record` writes it anew"
    entry = recorded.get(stage, {})
    if entry.get("version") != VERSIONS[stage]:
        return [
            f"the record of {stage} is of version {entry.get('version')}, the code's is {VERSIONS[stage]}: {what_to_do}"
        ]
    before = entry["branches"].get(branch.name)
    if before is None:
        return [f"{stage} has no record of the branch {branch.name!r}: {what_to_do}"]
    wrong = [
        f"{name}: {before.get(name)} before, {now.get(name)} now"
        for name in sorted(before.keys() | now.keys())
        if not same(before.get(name), now.get(name))
    ]
    if not wrong:
        return []
    return [
        f"behaviour of {stage} changed (branch {branch.name!r}; {len(wrong)} of {len(now)} numbers, first "
        f"{wrong[0]}): if that is meant, raise its VERSION in src/flowprior/config/versions.py, then {what_to_do}"
    ]


def same(before: float | None, now: float | None) -> bool:
    """Equal within what another machine may differ by."""
    if before is None or now is None:
        return before is now
    return abs(now - before) <= TOLERANCE * max(1.0, abs(before))
