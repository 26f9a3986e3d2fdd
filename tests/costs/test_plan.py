"""The plan of a preset: the counts of the paper's sizes, what the stages really do at small ones, and its mistakes."""

import copy
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import encode_latents
import extract_features
import project
import train_ae
import train_flow
import train_mar
from flowprior.autoencoder.vit import build_autoencoder
from flowprior.config import params
from flowprior.core import rng
from flowprior.core.shard_writer import ShardWriter, to_float16
from flowprior.costs import plan
from flowprior.costs import stages as costs
from flowprior.costs.flops import H100, num_parameters
from flowprior.mar.model import MAR
from flowprior.reconstruction.discriminator import Discriminator, FrozenFeatures
from flowprior.training import image_losses
from flowprior.training.session import Session

from .closure import ROOT

TREE = params.read_yaml(ROOT / "params.yaml")
STEPS = 4


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For small tensors: threads that wait for one another crawl."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def changed(preset: str, changes: dict[str, object]) -> params.Params:
    """The file's parameters with another preset; keys of the changes are below it, or from the top after a dot."""
    tree = copy.deepcopy(TREE)
    tree["preset"] = preset
    for key, value in changes.items():
        *above, last = key.removeprefix(".").split(".")
        node = tree if key.startswith(".") else tree["presets"][preset]
        for part in above:
            node = node[part]
        node[last] = value
    return params.parse(tree)


def count(*modules: nn.Module) -> int:
    return num_parameters(modules)


# --- the paper's sizes ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imagenet() -> dict[str, costs.Work]:
    """The plan of the paper's sizes."""
    cfg = plan.load("imagenet", copy.deepcopy(TREE))
    facts = costs.assumed(cfg)
    return {stage: work(cfg, facts) for stage, work in costs.STAGES.items()}


def test_parameters_are_the_papers(imagenet: dict[str, costs.Work]) -> None:
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


def test_operations_are_those_of_the_papers_sizes(imagenet: dict[str, costs.Work]) -> None:
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


def test_memory_and_disk_are_of_the_right_size(imagenet: dict[str, costs.Work]) -> None:
    """States by hand; the rest between what weights alone take and what is absurd."""
    row = plan.row("train_ae", imagenet["train_ae"], H100)
    assert row.state_bytes == 22 * row.learned + 6 * row.frozen
    assert row.gpu_bytes(1) == row.state_bytes + row.kept_bytes
    assert row.gpu_bytes(8) == row.state_bytes + 4 * row.learned + row.kept_bytes / 8
    needed = row.gpus_needed(H100)
    assert row.gpu_bytes(needed) <= H100.memory_bytes < row.gpu_bytes(needed - 1)
    assert row.gpus_needed(H100._replace(memory_bytes=row.state_bytes)) is None
    assert row.gpus_needed(H100._replace(memory_bytes=row.gpu_bytes(1))) == 1
    assert imagenet["train_ae"].disk_bytes == 4 * count(imagenet["train_ae"].learned["autoencoder"])
    assert row.disk_bytes == imagenet["train_ae"].disk_bytes + 16 * row.learned
    images = 1_281_167 + 50_000
    assert imagenet["encode_latents"].disk_bytes == images * (2 * 64 * 32 * 2 + 8)


def test_a_batch_in_parts_needs_a_part_of_the_memory_and_as_many_operations() -> None:
    for stage in ("train_flow", "train_ae", "train_mar"):
        whole, parts = (
            costs.STAGES[stage](cfg, costs.assumed(cfg))
            for cfg in (changed("digits", {f"{stage}.accumulate": n}) for n in (1, 4))
        )
        assert parts.cost.kept_bytes == pytest.approx(whole.cost.kept_bytes / 4, rel=0.05)
        assert parts.cost.flops == pytest.approx(whole.cost.flops, rel=0.01)


def test_checkpointing_lowers_memory_and_adds_a_forward_pass() -> None:
    off, on = (
        costs.train_ae(cfg, costs.assumed(cfg))
        for cfg in (
            changed("digits", {"train_ae.gradient_checkpointing": x}) for x in (False, True)
        )
    )
    assert on.cost.kept_bytes < 0.6 * off.cost.kept_bytes
    assert 1.15 < on.parts["autoencoder"] / off.parts["autoencoder"] < 1.34


@pytest.mark.parametrize("bottleneck", ["plain", "kl", "softvq"])
@pytest.mark.parametrize("objective", ["none", "likelihood", "elbo", "sds", "dmd", "sliced_w2"])
def test_every_variant_can_be_counted(bottleneck: str, objective: str) -> None:
    changes = {".autoencoder.bottleneck": bottleneck, ".align.objective": objective}
    cfg = changed("smoke", changes)
    work = costs.train_ae(cfg, costs.assumed(cfg))
    assert list(work.learned) == ["autoencoder", *["fake_flow"] * (objective == "dmd")]
    assert (work.parts["alignment"] == 0) == (objective == "none")


# --- what the stages do -----------------------------------------------------------------------------


def narrow_discriminator(name: str, *, pretrained: bool) -> tuple[FrozenFeatures, Discriminator]:
    """A transformer of four narrow blocks, and its heads."""
    vit = VisionTransformer(
        img_size=32, patch_size=4, embed_dim=64, depth=4, num_heads=2, num_classes=0
    )
    return FrozenFeatures(vit), Discriminator(64)


SHORT: dict[str, object] = {
    f"{stage}.{key}": value
    for stage in ("train_flow", "train_ae", "train_mar")
    for key, value in (
        ("steps", STEPS),
        ("log_steps", STEPS),
        ("checkpoint_steps", STEPS),
        ("optimizer.warmup_steps", 1),
    )
} | {"train_ae.eval_steps": STEPS}


def run_counted(cfg: params.Params, root: Path, *stages: ModuleType) -> dict[str, list[int]]:
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
        patch.setattr(image_losses, "build_discriminator", narrow_discriminator)
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
def photographs(workspace: Path) -> params.Params:
    """The smoke preset on those, with both judges; the game begins half way."""
    return changed(
        "smoke",
        SHORT
        | {
            ".images.source": "imagefolder",
            ".images.path": str(workspace / "images"),
            ".prior.source": "gaussian",
            ".evaluation.extractor": "none",
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
def counts(photographs: params.Params, workspace: Path) -> dict[str, list[int]]:
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
def planned(
    photographs: params.Params, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], costs.Work]:
    """The plan of a stage, of the same sizes."""
    for module in (image_losses, costs):
        monkeypatch.setattr(module, "build_discriminator", narrow_discriminator)
    facts = costs.assumed(photographs)._replace(train_images=64, held_out_images=16, num_classes=2)
    return lambda stage: costs.STAGES[stage](photographs, facts)


def test_the_flow_trains_at_the_planned_cost(
    counts: dict[str, list[int]], planned: Callable[[str], costs.Work]
) -> None:
    assert counts["train_flow"] == [planned("train_flow").cost.flops] * STEPS


def test_the_autoencoder_trains_at_the_planned_cost(
    counts: dict[str, list[int]], planned: Callable[[str], costs.Work]
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
    counts: dict[str, list[int]], workspace: Path
) -> None:
    """On digits: teacher, entropy and `dmd`'s updates; checkpointed, in two parts."""
    changes = {
        ".prior.source": "gaussian",
        "train_flow.width": 64,
        ".autoencoder.bottleneck": "softvq",
        ".align.objective": "dmd",
        "train_ae.gradient_checkpointing": True,
        "train_ae.accumulate": 2,
    }
    cfg = changed("smoke", SHORT | changes)
    found = run_counted(cfg, workspace, train_ae)  # of the flow that is there
    work = costs.train_ae(cfg, costs.assumed(cfg))
    assert found["train_ae"][0] == pytest.approx(work.cost.flops, rel=1e-3)
    assert count(work.learned["autoencoder"]) > count(work.learned["autoencoder"].autoencoder)


def test_mar_trains_at_the_planned_cost(
    counts: dict[str, list[int]], planned: Callable[[str], costs.Work]
) -> None:
    """Over 20 draws of the number of masked tokens, which spread the costs of steps."""
    found = counts["train_mar"]
    assert max(found) > 1.03 * min(found)
    assert planned("train_mar").cost.flops == pytest.approx(sum(found) / 20, rel=0.02)


def test_encoding_and_sampling_cost_what_is_planned(
    photographs: params.Params, planned: Callable[[str], costs.Work]
) -> None:
    """As the stages do it: views of all images, held-out ones back again; tokens and decoding, twice."""
    facts = costs.assumed(photographs)
    encoding, sampling = (getattr(photographs.scale, s) for s in ("encode_latents", "sample_eval"))
    with rng.scoped(0):
        shape = train_ae.shape_of(photographs, facts.channels, photographs.scale.project.dim)
        autoencoder = build_autoencoder(shape, "plain")
        mar = MAR(costs._mar(photographs, facts._replace(num_classes=2)).shape).eval()
    images = torch.zeros(16, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        for _ in range(5):  # 64 images to train with and 16 held out
            encode_latents.encode(autoencoder, images, encoding.flip)
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


# --- the command ------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["digits", "smoke"])
def test_a_line_for_each_stage_and_one_for_all(
    preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan.main(["--preset", preset, "--gpus", "2"])
    text = capsys.readouterr().out
    for stage in params.SCIENCE:
        assert len(re.findall(rf"^{stage} .*(fp32|bf16)$", text, re.MULTILINE)) == 1
    assert list(costs.STAGES) == list(params.SCIENCE)
    assert re.search(r"^in all \S+ GPU-hours, \S+ hours on 2 GPUs, \S+ GiB", text, re.MULTILINE)
    assert re.search(r"of which 40% are reached", text)
    assert "train_images 1438" in text
    assert "Not counted" in text


def test_hours_are_inverse_to_utilisation_and_to_the_peak() -> None:
    cfg = plan.load("smoke", copy.deepcopy(TREE))
    facts = costs.assumed(cfg)
    works = {stage: work(cfg, facts) for stage, work in costs.STAGES.items()}
    for stage, work in works.items():
        whole, half = (
            plan.row(stage, work, H100._replace(utilisation=u)).gpu_hours for u in (0.5, 0.25)
        )
        assert half == 2 * whole
        operations = work.num_steps * work.cost.flops
        peak = H100.bf16_flops if work.precision == "bf16" else H100.fp32_flops
        assert whole == pytest.approx(operations / (0.5 * peak) / 3600)
        assert bool(work.num_steps) == (stage not in ("extract_features", "project"))
        faster = H100._replace(fp32_flops=10 * H100.fp32_flops, utilisation=0.5)
        assert plan.row(stage, work, faster).gpu_hours == pytest.approx(whole / 10)


def test_the_number_of_gpus_divides_hours_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for gpus in ("1", "4"):
        plan.main(["--preset", "smoke", "--gpus", gpus])
        text = capsys.readouterr().out
        numbers = re.search(r"in all (\S+) GPU-hours, (\S+) hours on", text)
        assert numbers
        found.append([float(number) for number in numbers.groups()])
    (all_one, one), (all_four, four) = found
    assert all_one == all_four == one
    assert four == pytest.approx(one / 4, rel=0.01)


def test_the_table_of_the_readme_is_the_plan(imagenet: dict[str, costs.Work]) -> None:
    """Of eight H100."""
    text = (params.ROOT / "README.md").read_text(encoding="utf-8")
    shown = dict(
        re.findall(
            r"^\| `(\w+)` \| ([\d.]+ \| [\d ]+ . [\d ]+ \| .*) \|$", text, flags=re.MULTILINE
        )
    )
    counted = {}
    for stage, work in imagenet.items():
        line = plan.row(stage, work, plan.H100)
        if line.steps:
            size = f"{math.ceil(line.steps):,} \N{MULTIPLICATION SIGN} {line.batch:,}".replace(
                ",", " "
            )
            values = (
                line.step_flops / 1e12,
                line.gpu_bytes(8) / plan.GIB,
                line.disk_bytes / plan.GIB,
                line.gpu_hours,
            )
            figures = " | ".join(f"{value:.1f}" for value in values)
            counted[stage] = f"{line.learned / 1e6:.1f} | {size} | {figures}"
    assert shown == counted


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--utilisation", "0"], "--utilisation 0.0 is a share"),
        (["--utilisation", "2"], "--utilisation 2.0 is a share"),
        (["--utilisation", "nan"], "--utilisation nan is a share"),
        (["--gpus", "-1"], "--gpus -1 must be positive"),
        (["--gpus", "0"], "--gpus 0 must be positive"),
        (["--gpus", "many"], "--gpus: invalid int value: 'many'"),
        (["--bf16-tflops", "nan"], "--bf16-tflops nan must be positive"),
        (["--memory-gib", "inf"], "--memory-gib inf must be positive and finite"),
        (["--train-images", "0"], "--train-images 0 must be positive"),
        (
            ["--preset", "imagent"],
            "found 'imagent', allowed: digits, imagenet, smoke; did you mean",
        ),
        (["--prset", "smoke"], "--prset"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_a_message_and_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        plan.main(arguments)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert not captured.out


@pytest.mark.parametrize(
    ("changes", "arguments", "said"),
    [
        ({"train_ae.adversarial.backbone": "vit_tyni"}, [], "timm has no model 'vit_tyni'"),
        ({"train_ae.adversarial.backbone": "local-dir:/nowhere"}, [], "'local-dir:/nowhere'"),
        ({".prior.source": "file", ".prior.path": "x.npy"}, [], "--feature-vectors and"),
        ({"train_ae.widht": 8}, [], "did you mean 'width'?"),
    ],
)
def test_a_file_that_cannot_be_counted_is_told(
    changes: dict[str, object],
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tree = copy.deepcopy(TREE)
    for key, value in changes.items():
        *above, last = key.removeprefix(".").split(".")
        node = tree if key.startswith(".") else tree["presets"]["imagenet"]
        for part in above:
            node = node[part]
        node[last] = value
    monkeypatch.setattr(params, "read_yaml", lambda path: tree)
    with pytest.raises(SystemExit) as stop:
        plan.main(["--preset", "imagenet", *arguments])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_without_lpips_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lpips", None)
    with pytest.raises(SystemExit) as stop:
        plan.main(["--preset", "imagenet"])
    assert stop.value.code == 2
    assert "pip install 'flowprior[imagenet]'" in capsys.readouterr().err


def test_digits_in_the_file_do_not_stand_in_the_way_of_photographs() -> None:
    tree = copy.deepcopy(TREE)
    tree["images"]["source"] = "digits"
    cfg = plan.load("imagenet", tree)
    assert not cfg.on_digits
    assert costs.assumed(cfg).train_images == 1_281_167
    assert tree["images"]["source"] == "digits"


def test_features_are_counted_as_the_stage_caps_them() -> None:
    """Of the held-out images a tenth of the caps; of a table all rows."""

    def found(preset: str, source: str, **caps: int | None) -> tuple[int, int]:
        changes = {f"extract_features.{name}": value for name, value in caps.items()}
        facts = costs.assumed(changed(preset, {".prior.source": source, **changes}))
        return facts.feature_vectors, facts.feature_dim

    assert found("digits", "semantic") == (16 * (1438 + 359), 64)
    assert found("digits", "semantic", max_vectors=1000, max_images=None) == (1000 + 100, 64)
    assert found("digits", "semantic", max_images=100) == (16 * 110, 64)
    assert found("digits", "semantic", max_images=5) == (16 * 6, 64)
    assert found("digits", "gaussian", max_vectors=1000) == (1000, 64)
    whole = {"max_vectors": 10_000_000, "max_images": None}
    assert found("imagenet", "semantic", **whole) == (1_281_167 * 7 + 50_000 * 20, 768)
    assert found("imagenet", "low_level", **whole) == (1_281_167 * 7 + 50_000 * 20, 32)
    assert found("imagenet", "textual") == (151_936, 896)


def test_the_passes_of_a_transformer_for_features_are_counted(
    imagenet: dict[str, costs.Work],
) -> None:
    """DINOv2's ViT-B/14 on 18 x 18 patches: 2 operations a parameter of a block and token, and attention's."""
    work = imagenet["extract_features"]
    blocks = 12 * 12 * 768**2
    attention = 12 * 4 * 325**2 * 768
    patches = 2 * 324 * 3 * 14**2 * 768
    assert work.cost.flops / work.batch == 325 * 2 * blocks + attention + patches
    assert TREE["presets"]["imagenet"]["extract_features"]["max_images"] == 100_000
    assert work.num_steps * work.batch == 100_000 + 10_000
    table = changed("imagenet", {".prior.source": "textual"})
    assert costs.extract_features(table, costs.assumed(table)).cost.flops == 0
