"""The imagenet preset in miniature: the real architectures narrowed, every loss on, two ranks, through DVC."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import yaml
from PIL import Image
from safetensors.torch import save_file

from flowprior.core import rng

from .workspace import STAGES, clone, run, stages_run

pytestmark = pytest.mark.slow

NUM_CLASSES, PER_CLASS, SIZE = 4, 60, 32
TWO_RANKS = "LAUNCH=torchrun --standalone --nproc-per-node=2"


def write_images(root: Path) -> Path:
    """A tree of JPEGs of a few sizes, a colour and a pattern for each class; one file in it is damaged."""
    draw = np.random.default_rng(0)
    for label in range(NUM_CLASSES):
        folder = root / f"n{label:08d}"
        folder.mkdir(parents=True)
        for index in range(PER_CLASS):
            height, width = draw.integers(36, 60, 2)
            waves = np.sin(np.arange(width) * (label + 1) / 3)[None, :, None] * 60
            noise = draw.normal(0, 12, (height, width, 3))
            base = np.eye(3)[label % 3] * 80 + 90 + draw.normal(0, 20, 3)
            pixels = np.clip(base + waves + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index:04d}.JPEG", quality=90)
    (root / "n00000001" / "0007.JPEG").write_bytes(b"\xff\xd8 not a JPEG")
    return root


def write_transformer(folder: Path, architecture: str, seed: int, **narrowed: int) -> Path:
    """A model of timm's, narrowed, with random weights, in the format of its repositories on the hub."""
    with rng.scoped(seed, architecture):
        model = timm.create_model(architecture, pretrained=False, num_classes=0, **narrowed)
    folder.mkdir(parents=True)
    size = int(model.patch_embed.img_size[0])
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": model.num_features,
        "model_args": narrowed,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    return folder


def shrink(scale: dict) -> dict:
    """An imagenet preset that two cores run in a minute; nothing is turned off."""
    scale["images"]["size"] = SIZE
    scale["extract_features"] |= {"batch_images": 32, "max_vectors": 500}
    scale["project"]["dim"] = 8
    short = {"steps": 6, "log_steps": 2, "checkpoint_steps": 3, "precision": "fp32"}
    scale["train_flow"] |= short | {
        "width": 32,
        "depth": 2,
        "batch_vectors": 64,
        "time_groups": 16,
        "eval_vectors": 100,
    }
    scale["train_ae"] |= short | {
        "patch_size": 8,
        "num_latents": 4,
        "width": 32,
        "depth": 4,
        "num_heads": 2,
        "batch_images": 8,
        "eval_steps": 3,
        "eval_latents": 100,
    }
    scale["train_ae"]["perceptual"]["warmup_steps"] = 2
    scale["train_ae"]["adversarial"]["start_step"] = 2
    scale["encode_latents"] |= {"batch_images": 20}
    scale["train_mar"] |= short | {
        "width": 32,
        "encoder_depth": 2,
        "decoder_depth": 2,
        "num_heads": 2,
        "num_buffer": 4,
        "head_width": 32,
        "head_depth": 2,
        "batch_images": 16,
        "dropout": 0.0,
    }
    scale["sample_eval"] |= {
        "num_samples": 20,
        "batch_images": 8,
        "num_iterations": 4,
        "head_steps": 8,
    }
    for stage in ("train_flow", "train_ae", "train_mar"):
        scale[stage]["optimizer"]["warmup_steps"] = 2
    return scale


@pytest.fixture(scope="module")
def repository(tmp_path_factory, inception_weights: Path) -> Path:
    """A clone with images at data/images/imagenet, in which the whole experiment has run on two ranks."""
    folder = tmp_path_factory.mktemp("miniature")
    write_transformer(
        folder / "features",
        "vit_base_patch14_dinov2",
        0,
        embed_dim=48,
        depth=2,
        num_heads=2,
        img_size=28,
    )
    write_transformer(
        folder / "encoder",
        "vit_large_patch14_dinov2",
        1,
        embed_dim=32,
        depth=4,
        num_heads=2,
        img_size=28,
    )
    write_transformer(
        folder / "critic", "vit_small_patch16_224", 2, embed_dim=32, depth=4, num_heads=2
    )
    target = clone(
        folder / "clone",
        preset="digits",
        prior__path=str(folder / "features"),
        images__max_corrupt=0.03,
        evaluation__weights=str(inception_weights),
        train_ae__gradient_checkpointing=True,
        train_ae__accumulate=2,
        train_ae__encoder=f"local-dir:{folder / 'encoder'}",
        train_ae__perceptual__pretrained=False,
        train_ae__adversarial__backbone=f"local-dir:{folder / 'critic'}",
        sample_eval__final_head_steps=2,
    )
    write_images(folder / "images")
    (target / "data/images/imagenet").symlink_to(folder / "images")
    path = target / "presets/imagenet.yaml"
    scale = shrink(yaml.safe_load(path.read_text(encoding="utf-8")))
    path.write_text(yaml.safe_dump(scale, sort_keys=False), encoding="utf-8")
    run(["git", "commit", "-qam", "miniature"], target)
    settings = ("-S", "preset=imagenet", "-S", "images.path=data/images/imagenet")
    output = run(["env", TWO_RANKS, "dvc", "exp", "run", *settings], target)
    assert stages_run(output) == STAGES
    assert "another image of its class takes its place" in output
    return target


def metrics(repository: Path, stage: str) -> dict:
    return json.loads((repository / f"metrics/{stage}.json").read_text(encoding="utf-8"))


def curve(repository: Path, name: str) -> list[dict[str, float]]:
    with (repository / f"metrics/curves/{name}.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_features_are_the_transformers_tokens_evenly_over_the_classes(repository: Path) -> None:
    found = metrics(repository, "extract_features")
    assert found["dim"] == 48
    assert 0 < found["count"] <= 500
    manifest = json.loads((repository / "data/features/manifest.json").read_text())
    assert len(manifest["source"]["sha256"]) == 64
    assert manifest["source"]["tokens"] == "2 x 2"


def test_every_loss_is_on_and_its_curve_is_kept(repository: Path) -> None:
    rows = curve(repository, "train_ae")
    assert {"reconstruction", "perceptual", "alignment", "grad_norm"} <= set(rows[0])
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    game = curve(repository, "gan")
    assert [row["step"] for row in game] == [4, 6]
    assert all(row["gradient_ratio"] > 0 for row in game)


def test_latents_of_all_images_are_there_once_and_in_order(repository: Path) -> None:
    """Encoded by two ranks in turn, pieces that do not divide by them; as one rank encodes them."""
    encoded = metrics(repository, "encode_latents")
    assert encoded["num_images"] == NUM_CLASSES * PER_CLASS // 5
    assert encoded["num_corrupt_images"] == 1
    assert encoded["rfid"] > 0
    manifest = json.loads((repository / "data/latents/manifest.json").read_text())
    assert manifest["splits"]["train"]["rows"] == NUM_CLASSES * PER_CLASS * 4 // 5
    assert manifest["splits"]["train"]["fields"]["latents"]["shape"] == [2, 4, 8]
    before = (repository / "data/latents/manifest.json").read_bytes()
    run(["env", "PYTHONPATH=src", "python", "stages/encode_latents.py"], repository)
    after = (repository / "data/latents/manifest.json").read_bytes()
    assert json.loads(after)["splits"] == json.loads(before)["splits"]
    alone = metrics(repository, "encode_latents")
    assert alone["psnr_db"] == pytest.approx(encoded["psnr_db"], abs=1e-3)
    assert alone["latent_std"] == pytest.approx(encoded["latent_std"], rel=1e-3)


def test_samples_are_those_of_one_rank(repository: Path) -> None:
    found = metrics(repository, "sample_eval")
    assert {"fid", "fid_guided", "inception_score", "precision", "recall", "kid"} <= set(found)
    with np.load(repository / "data/samples/samples.npz") as file:
        together, labels = file["arr_0"], file["labels"]
    assert together.shape == (20, SIZE, SIZE, 3)
    assert np.bincount(labels).tolist() == [5] * NUM_CLASSES
    run(["env", "PYTHONPATH=src", "python", "stages/sample_eval.py"], repository)
    with np.load(repository / "data/samples/samples.npz") as file:
        assert np.abs(file["arr_0"].astype(int) - together).max() <= 1


@pytest.mark.parametrize("stage", ["train_flow", "train_ae", "train_mar"])
def test_one_and_two_ranks_give_the_same_curve(repository: Path, stage: str) -> None:
    """Without dropout, up to the order of sums, with every loss of the autoencoder and gradients in two parts."""
    two = curve(repository, stage)
    shutil.rmtree(repository / ".ckpt" / stage)
    run(["env", "PYTHONPATH=src", "python", f"stages/{stage}.py"], repository)
    one = curve(repository, stage)
    assert len(one) == len(two) == 3
    for row, other in zip(one, two, strict=True):
        assert row == pytest.approx(other, rel=2e-3, abs=1e-5)


def test_other_images_stop_the_stages_behind(repository: Path) -> None:
    """One image more; extract_features would take it, the stages whose inputs are of the old listing do not."""
    late = repository / "data/images/imagenet/n00000002/late.JPEG"
    Image.new("RGB", (40, 40)).save(late)
    try:
        for stage, made_by in (("train_ae", "extract_features"), ("sample_eval", "train_ae")):
            with pytest.raises(AssertionError, match=f"dvc repro --force --downstream {made_by}"):
                run(["env", "PYTHONPATH=src", "python", f"stages/{stage}.py"], repository)
    finally:
        late.unlink()


def test_preflight_finds_everything_and_names_what_is_missing(repository: Path) -> None:
    preflight = [
        "env",
        "PYTHONPATH=src",
        "HF_HUB_OFFLINE=1",
        "python",
        "-m",
        "flowprior",
        "preflight",
    ]
    said = run([*preflight, "--preset", "imagenet"], repository)
    assert said.count("  ok  ") == 7
    assert "192 train and 48 validation, 4 classes" in said
    assert "all there for preset imagenet" in said
    tree = yaml.safe_load((repository / "params.yaml").read_text(encoding="utf-8"))
    critic = Path(tree["train_ae"]["adversarial"]["backbone"].split(":")[1])
    critic.rename(critic.with_name("elsewhere"))
    try:
        with pytest.raises(AssertionError, match="MISSING  discriminator") as failed:
            run([*preflight, "--preset", "imagenet"], repository)
    finally:
        critic.with_name("elsewhere").rename(critic)
    assert str(failed.value).count("  ok  ") == 5  # what it costs cannot be counted either
