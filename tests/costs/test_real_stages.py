"""Stages at small sizes, run as they are, cost what the plan says."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch.utils.flop_counter import FlopCounterMode

import extract_features
import project
import train_ae
import train_flow
import train_mar
from flowprior.autoencoder.encoding import encode
from flowprior.config.schema import Params
from flowprior.core import rng
from flowprior.core.shard_writer import ShardWriter, to_float16
from flowprior.costs import networks, of_autoencoder
from flowprior.costs.facts import assumed
from flowprior.costs.hardware import num_parameters
from flowprior.costs.stages import count
from flowprior.costs.work import Work
from flowprior.reconstruction import terms
from flowprior.reconstruction.discriminator import Discriminator, FrozenFeatures
from flowprior.training.session import Session

from .conftest import Changed

pytestmark = pytest.mark.slow

STEPS = 4


def narrow_discriminator(name: str, *, pretrained: bool) -> tuple[FrozenFeatures, Discriminator]:
    """A transformer of four narrow blocks, and its heads."""
    vit = VisionTransformer(
        img_size=32, patch_size=4, embed_dim=64, depth=4, num_heads=2, num_classes=0
    )
    return FrozenFeatures(vit), Discriminator(64)


SHORT: dict[str, Any] = {
    f"{stage}.{key}": value
    for stage in ("train_flow", "train_ae", "train_mar")
    for key, value in (
        ("steps", STEPS),
        ("log_steps", STEPS),
        ("checkpoint_steps", STEPS),
        ("optimizer.warmup_steps", 1),
    )
} | {"train_ae.eval_steps": STEPS}


def run_counted(cfg: Params, root: Path, *stages: ModuleType) -> dict[str, list[int]]:
    """Run stages as they are, on this machine; operations of each step of those that train."""
    found: dict[str, list[int]] = {}
    walk = Session.steps

    def counted(session: Session) -> Iterator[int]:
        for step in walk(session):
            with FlopCounterMode(display=False) as counter:
                yield step
            found.setdefault(session.stage, []).append(int(counter.get_total_flops()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWPRIOR_MLFLOW", "off")
        patch.setattr(terms, "build_discriminator", narrow_discriminator)
        patch.setattr(Session, "steps", counted)
        for stage in stages:
            stage.main(cfg, root)
    return found


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With images of two classes, noise of 32 pixels in colour."""
    root, draw = tmp_path_factory.mktemp("workspace"), np.random.default_rng(0)
    for label in range(2):
        (root / f"images/{label}").mkdir(parents=True)
        for index in range(40):
            pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"images/{label}/{index}.png")
    return root


@pytest.fixture(scope="module")
def photographs(workspace: Path, changed: Changed) -> Params:
    """The smoke preset on those, with both judges; the game begins half way."""
    return changed(
        "smoke",
        SHORT
        | {
            "images.source": "imagefolder",
            "images.path": str(workspace / "images"),
            "prior.source": "gaussian",
            "evaluation.judge": "none",
            "images.size": 32,
            "extract_features.max_vectors": 500,
            "train_flow.eval_vectors": 100,
            "train_flow.width": 64,
            "train_ae.width": 64,
            "train_ae.depth": 2,
            "train_ae.patch_size": 8,
            "train_ae.batch_images": 8,
            "train_ae.perceptual.weight": 1.0,
            "train_ae.perceptual.pretrained": False,
            "train_ae.adversarial.weight": 0.2,
            "train_ae.adversarial.start_step": STEPS // 2,
            "train_mar.steps": 20,
            "train_mar.log_steps": 20,
            "train_mar.checkpoint_steps": 20,
            "train_mar.width": 64,
            "train_mar.head_width": 64,
            "train_mar.head_draws": 4,
            "train_mar.dropout": 0.0,
        },
    )


@pytest.fixture(scope="module")
def counts(photographs: Params, workspace: Path) -> dict[str, list[int]]:
    """Of the training stages on photographs; MAR's latents are noise."""
    folder = workspace / "data/latents"
    folder.mkdir(parents=True)
    latents = ShardWriter(folder)
    for split in ("train", "validation"):
        noise = torch.randn(50, 1, 8, 4, generator=rng.generator(0, split))
        arrays = {"latents": to_float16(noise), "labels": np.arange(50) % 2}
        latents.write(split, arrays)
    latents.close(kind="latents", provenance={}, num_classes=2, mean=[0.0] * 4, std=1.0)
    stages = extract_features, project, train_flow, train_ae, train_mar
    return run_counted(photographs, workspace, *stages)


@pytest.fixture
def planned(photographs: Params, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Work]:
    """The plan of a stage, of the same sizes."""
    for module in (terms, networks):
        monkeypatch.setattr(module, "build_discriminator", narrow_discriminator)
    facts = assumed(photographs)._replace(train_images=64, held_out_images=16, num_classes=2)
    return lambda stage: count(stage, photographs, facts)


def test_the_flow_trains_at_the_planned_cost(
    counts: dict[str, list[int]], planned: Callable[[str], Work]
) -> None:
    assert counts["train_flow"] == [planned("train_flow").cost.flops] * STEPS


def test_the_autoencoder_trains_at_the_planned_cost(
    counts: dict[str, list[int]], planned: Callable[[str], Work]
) -> None:
    """Before and after the game begins; the last step, which looks at gradients as well, apart."""
    work = planned("train_ae")
    before, _, after, look = counts["train_ae"]
    parts = {name: 8 * flops for name, flops in work.parts.items()}
    assert parts.keys() == {"autoencoder", "alignment", "perceptual", "adversarial"}
    assert before == pytest.approx(sum(parts.values()) - parts["adversarial"], rel=1e-3)
    assert after - before == pytest.approx(parts["adversarial"], rel=1e-3)
    assert look > after
    assert work.cost.flops == pytest.approx((before + after) / 2, rel=1e-3)


def test_a_soft_quantiser_and_a_second_flow_train_at_the_planned_cost(
    counts: dict[str, list[int]], workspace: Path, changed: Changed
) -> None:
    """On digits: teacher, entropy and `dmd`'s updates; checkpointed, in two parts."""
    changes = {
        "prior.source": "gaussian",
        "train_flow.width": 64,
        "autoencoder.bottleneck": "softvq",
        "align.objective": "dmd",
        "train_ae.gradient_checkpointing": True,
        "train_ae.accumulate": 2,
    }
    cfg = changed("smoke", SHORT | changes)
    found = run_counted(cfg, workspace, train_ae)  # of the flow that is there
    work = of_autoencoder.train_ae(cfg, assumed(cfg))
    assert found["train_ae"][0] == pytest.approx(work.cost.flops, rel=1e-3)
    trainee = work.learned["autoencoder"]
    assert num_parameters([trainee]) > num_parameters([trainee.autoencoder])


def test_mar_trains_at_the_planned_cost(
    counts: dict[str, list[int]], planned: Callable[[str], Work]
) -> None:
    """Over 20 draws of the number of masked tokens, which spread the costs of steps."""
    found = counts["train_mar"]
    assert max(found) > 1.03 * min(found)
    assert planned("train_mar").cost.flops == pytest.approx(sum(found) / 20, rel=0.02)


def test_encoding_and_sampling_cost_what_is_planned(
    photographs: Params, planned: Callable[[str], Work]
) -> None:
    """As the stages do it: views of all images, held-out ones back again; tokens and decoding, twice."""
    facts = assumed(photographs)
    encoding, sampling = photographs.encode_latents, photographs.sample_eval
    with rng.scoped(0), pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "META", torch.device("cpu"))
        autoencoder = networks.trainee(photographs, facts.channels, None).autoencoder
        mar = networks.generator(photographs, 2).eval()
    images = torch.zeros(16, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        for _ in range(5):  # 64 images to train with and 16 held out
            encode(autoencoder, images, encoding.flip)
        with torch.no_grad():
            autoencoder(images)
    work = planned("encode_latents")
    assert work.num_steps * work.cost.flops == pytest.approx(counter.get_total_flops(), rel=1e-3)
    labels = torch.zeros(20, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for guidance in (1.0, photographs.guidance.scale):
            tokens = mar.sample(
                labels,
                rng.generator(0),
                num_iterations=sampling.num_iterations,
                head_steps=sampling.head_steps,
                solver=sampling.solver,
                guidance_scale=guidance,
            )
            autoencoder.decode(tokens)
    assert planned("sample_eval").cost.flops / sampling.batch_images == pytest.approx(
        counter.get_total_flops() / 20, rel=0.05
    )
