"""What stages cost: the counts of the paper's sizes, and that every variant can be counted."""

import pytest
from torch import nn

from flowprior.alignment.names import OBJECTIVES
from flowprior.config import schema
from flowprior.costs.facts import assumed
from flowprior.costs.hardware import H100, num_parameters
from flowprior.costs.of_autoencoder import train_ae
from flowprior.costs.of_prior import extract_features
from flowprior.costs.plan import row
from flowprior.costs.stages import STAGES
from flowprior.costs.work import Work

from .conftest import Changed


def count(*modules: nn.Module) -> int:
    return num_parameters(modules)


def test_every_stage_is_counted() -> None:
    assert list(STAGES) == list(schema.STAGES)


@pytest.mark.slow
def test_parameters_are_the_papers(imagenet: dict[str, Work]) -> None:
    """From the authors' code (reference.md §1.1, §3, §4, §7): there the maps to and from the latents are apart."""
    learned, frozen = imagenet["train_ae"].learned, imagenet["train_ae"].frozen
    autoencoder = learned["autoencoder"].autoencoder
    assert count(autoencoder.encoder) == 303_543_296
    assert count(autoencoder.bottleneck) == 32_800
    assert count(autoencoder.decoder) - count(autoencoder.decoder.input) == 303_478_528
    assert count(autoencoder.decoder.input) == 33_792
    assert count(learned["discriminator"]) == 7_386_245
    assert count(imagenet["train_flow"].learned["velocity"]) == 34_978_848
    assert count(frozen["flow_prior"]) == 34_978_848
    assert count(frozen["transformer"]) == pytest.approx(21.67e6, rel=1e-3)
    assert count(frozen["perceptual"]) == pytest.approx(14.72e6, rel=1e-3)
    assert count(imagenet["train_mar"].learned["mar"]) == pytest.approx(207.5e6, rel=1e-3)


@pytest.mark.slow
def test_operations_are_those_of_the_papers_sizes(imagenet: dict[str, Work]) -> None:
    """For each image, counted by hand: 6 operations a parameter and token where it learns, 4 where its input does."""
    parts = imagenet["train_ae"].parts
    assert parts["autoencoder"] == pytest.approx(1.227e12, rel=0.02)
    assert parts["perceptual"] == pytest.approx(0.120e12, rel=0.01)
    assert parts["adversarial"] == pytest.approx(0.099e12, rel=0.05)
    # 4 draws for 64 tokens, through the blocks' two layers and back; modulations are shared by an image.
    blocks = 12 * 1024**2 + 2 * 32 * 1024
    assert parts["alignment"] == pytest.approx(4 * 64 * 4 * blocks, rel=0.02)
    # 40% of the steps are without the game.
    whole = sum(parts.values()) - 0.4 * parts["adversarial"]
    assert imagenet["train_ae"].cost.flops == pytest.approx(512 * whole)
    # The head sees masked tokens alone, 0.867 of them: 7 GFLOP less than 159.
    head = 0.133 * 64 * 4 * 6 * 35.77e6
    assert imagenet["train_mar"].cost.flops / 2048 == pytest.approx(159e9 - head, rel=0.02)
    # Of 210 MFLOP, 64% are modulations, of which 1 024 groups of 128 vectors share each.
    assert imagenet["train_flow"].cost.flops / 131072 == pytest.approx(0.365 * 210e6, rel=0.02)
    sampled = imagenet["sample_eval"].parts
    decoded = imagenet["encode_latents"].cost.flops / 256 / 2.08
    assert sampled["without guidance"] - decoded == pytest.approx(2.94e12, rel=0.02)
    assert sampled["with guidance"] - decoded == pytest.approx(2 * 2.94e12, rel=0.02)


@pytest.mark.slow
def test_memory_and_disk_are_of_the_right_size(imagenet: dict[str, Work]) -> None:
    """States by hand; the rest between what weights alone take and what is absurd."""
    line = row("train_ae", imagenet["train_ae"], H100)
    assert line.state_bytes == 22 * line.learned + 6 * line.frozen
    assert line.gpu_bytes(1) == line.state_bytes + line.kept_bytes
    assert line.gpu_bytes(8) == line.state_bytes + 4 * line.learned + line.kept_bytes / 8
    needed = line.gpus_needed(H100)
    assert line.gpu_bytes(needed) <= H100.memory_bytes < line.gpu_bytes(needed - 1)
    assert line.gpus_needed(H100._replace(memory_bytes=line.state_bytes)) is None
    assert line.gpus_needed(H100._replace(memory_bytes=line.gpu_bytes(1))) == 1
    assert imagenet["train_ae"].disk_bytes == 4 * count(imagenet["train_ae"].learned["autoencoder"])
    assert line.disk_bytes == imagenet["train_ae"].disk_bytes + 16 * line.learned
    images = 1_281_167 + 50_000
    assert imagenet["encode_latents"].disk_bytes == images * (2 * 64 * 32 * 2 + 8)


@pytest.mark.parametrize("stage", ["train_flow", "train_ae", "train_mar"])
def test_a_batch_in_parts_needs_a_part_of_the_memory_and_as_many_operations(
    stage: str, changed: Changed
) -> None:
    whole, parts = (
        STAGES[stage](cfg, assumed(cfg))
        for cfg in (changed("digits", {f"{stage}.accumulate": n}) for n in (1, 4))
    )
    assert parts.cost.kept_bytes == pytest.approx(whole.cost.kept_bytes / 4, rel=0.05)
    assert parts.cost.flops == pytest.approx(whole.cost.flops, rel=0.01)


def test_checkpointing_lowers_memory_and_adds_a_forward_pass(changed: Changed) -> None:
    off, on = (
        train_ae(cfg, assumed(cfg))
        for cfg in (
            changed("digits", {"train_ae.gradient_checkpointing": x}) for x in (False, True)
        )
    )
    assert on.cost.kept_bytes < 0.6 * off.cost.kept_bytes
    assert 1.15 < on.parts["autoencoder"] / off.parts["autoencoder"] < 1.34


@pytest.mark.parametrize("bottleneck", ["plain", "kl", "softvq"])
@pytest.mark.parametrize("objective", [*OBJECTIVES])
def test_every_variant_can_be_counted(bottleneck: str, objective: str, changed: Changed) -> None:
    cfg = changed("smoke", {"autoencoder.bottleneck": bottleneck, "align.objective": objective})
    work = train_ae(cfg, assumed(cfg))
    assert not work.uncounted
    assert list(work.learned) == ["autoencoder", *["fake_flow"] * (objective == "dmd")]
    assert (work.parts["alignment"] == 0) == (
        objective in ("none", "kl")
    )  # elementwise is not counted


@pytest.mark.slow
def test_the_passes_of_a_transformer_for_features_are_counted(
    imagenet: dict[str, Work], changed: Changed
) -> None:
    """DINOv2's ViT-B/14 on 18 x 18 patches: 2 operations a parameter of a block and token, and attention's."""
    work = imagenet["extract_features"]
    blocks = 12 * 12 * 768**2
    attention = 12 * 4 * 325**2 * 768
    patches = 2 * 324 * 3 * 14**2 * 768
    assert work.cost.flops / work.batch == 325 * 2 * blocks + attention + patches
    assert changed("imagenet", {}).extract_features.max_images == 100_000
    assert work.num_steps * work.batch == 100_000 + 10_000
    table = changed("imagenet", {"prior.source": "textual"})
    assert extract_features(table, assumed(table)).cost.flops == 0
