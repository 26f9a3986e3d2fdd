"""Patch tokens: real architectures, narrowed and with random weights, in folders of the real formats."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
import torchvision.transforms.functional as tv
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from flowprior.core import rng
from flowprior.core.io import file_digest, save_tensors
from flowprior.encoders.networks import (
    DEFAULT_TRANSFORMER,
    TIMM_WEIGHTS,
    patch_tokens,
    trained_transformer,
)
from flowprior.features.of_images import image_features

from ..features.test_of_images import Numbered
from .folders import CPU, edit, pictures, timm_folder
from .hub_cache import COMMIT, fill_cache

NARROW = {"img_size": 70, "embed_dim": 24, "depth": 2, "num_heads": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """DINOv2's architecture, narrowed."""
    return timm_folder(tmp_path / "dino")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    (tmp_path / "hub").mkdir()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("size", [70, 60, 100])
@pytest.mark.parametrize("registers", [0, 4])
def test_patch_tokens_are_those_of_the_transformer_step_by_step(
    tmp_path: Path, size: int, registers: int
) -> None:
    """Resized with torchvision, normalised, embedded, through the blocks and the norm, by hand.

    At the transformer's own size, at a smaller and at a larger one; what stands before the patches is
    left out.
    """
    options = {"reg_tokens": registers, "no_embed_class": True} if registers else {}
    source = timm_folder(tmp_path / "vit", **options)
    encoder = patch_tokens(str(source), size=size, device=CPU)
    images = pictures(3, size)
    found = encoder(images)

    side = size // 14 * 14
    vit = timm.create_model(f"local-dir:{source}", pretrained=True, img_size=side).eval()
    resized = tv.resize((images + 1) / 2, [side, side], tv.InterpolationMode.BICUBIC)
    resized = resized.clamp(0, 1)
    normal = tv.normalize(resized, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    with torch.no_grad():
        tokens = vit.patch_embed.proj(normal).flatten(2).transpose(1, 2)
        before = [vit.cls_token, *([vit.reg_token] if registers else [])]
        before = [token.expand(3, -1, -1) for token in before]
        if registers:
            tokens = torch.cat([*before, tokens + vit.pos_embed], dim=1)
        else:
            tokens = torch.cat([*before, tokens], dim=1) + vit.pos_embed
        for block in vit.blocks:
            tokens = block(tokens)
        tokens = vit.norm(tokens)[:, 1 + registers :]
    assert found.shape == (3, (size // 14) ** 2, 24)
    assert encoder.dim == 24
    assert encoder.facts["tokens"] == f"{size // 14} x {size // 14}"
    torch.testing.assert_close(found, tokens, rtol=1e-4, atol=1e-4)
    assert found.std() > 0.1  # else nothing was compared


def test_a_folder_is_named_with_and_without_its_source(folder: Path) -> None:
    """The facts have its name, which does not change where it moves, and the hash of its weights."""
    expected = {
        "model": "dino",
        "sha256": file_digest(folder / TIMM_WEIGHTS),
        "tokens": "4 x 4",
    }
    first, second = (
        patch_tokens(name, size=64, device=CPU) for name in (str(folder), f"local-dir:{folder}")
    )
    assert first.facts == second.facts == expected
    assert torch.equal(first(pictures(2, 64)), second(pictures(2, 64)))


def test_the_weights_of_a_classifier_are_read_as_well(tmp_path: Path) -> None:
    """Its head is loaded with the rest and does not matter."""
    source = timm_folder(tmp_path / "vit", "vit_small_patch16_224", img_size=64, num_classes=7)
    assert load_file(source / TIMM_WEIGHTS)["head.weight"].shape == (7, 24)
    found = patch_tokens(str(source), size=64, device=CPU)(pictures(2, 64))
    assert found.shape == (2, 16, 24)
    vit = timm.create_model(f"local-dir:{source}", pretrained=True).eval()
    pixels = tv.normalize((pictures(2, 64) + 1) / 2, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    with torch.no_grad():
        torch.testing.assert_close(found, vit.forward_features(pixels)[:, 1:])


@pytest.mark.parametrize("name", [None, DEFAULT_TRANSFORMER, f"hf-hub:timm/{DEFAULT_TRANSFORMER}"])
def test_models_of_the_hub_come_from_its_cache(folder: Path, cache: Path, name: str | None) -> None:
    """By timm's name or by the repository's; the facts have the commit."""
    fill_cache(cache, f"timm/{DEFAULT_TRANSFORMER}", folder, COMMIT)
    encoder = patch_tokens(name, size=70, device=CPU)
    assert encoder.facts == {
        "model": name.removeprefix("hf-hub:") if name else DEFAULT_TRANSFORMER,
        "revision": COMMIT,
        "sha256": file_digest(folder / TIMM_WEIGHTS),
        "tokens": "5 x 5",
    }
    images = pictures(2, 70)
    assert torch.equal(encoder(images), patch_tokens(str(folder), size=70, device=CPU)(images))


def test_a_revision_chooses_among_versions(tmp_path: Path, folder: Path, cache: Path) -> None:
    """A tag; the commit of `main` is another one."""
    repository = f"timm/{DEFAULT_TRANSFORMER}"
    fill_cache(cache, repository, folder, COMMIT, "v1")
    other = timm_folder(tmp_path / "other", depth=1)
    fill_cache(cache, repository, other, "f" * 40)
    for revision, home in (("v1", folder), (COMMIT, folder), (None, other), ("f" * 40, other)):
        facts = patch_tokens(size=70, revision=revision, device=CPU).facts
        assert facts["sha256"] == file_digest(home / TIMM_WEIGHTS)


def test_config_and_weights_are_of_one_commit(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A push between the two downloads cannot mix two versions."""
    fill_cache(cache, "owner/model", folder, COMMIT)
    asked = []
    real = huggingface_hub.hf_hub_download

    def download(repository: str, name: str, *, revision: str | None) -> str:
        asked.append((repository, name, revision))
        return str(real(repository, name, revision=revision))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    patch_tokens("hf-hub:owner/model", size=70, revision="main", device=CPU)
    assert asked == [
        ("owner/model", "config.json", "main"),
        ("owner/model", TIMM_WEIGHTS, COMMIT),
    ]


def test_dinov2_has_768_channels_and_324_tokens_at_256_pixels() -> None:
    """The real architecture, with random weights: 18 x 18 patches of 14 in 252 pixels."""
    with rng.scoped(0, "dinov2"):
        encoder = patch_tokens(size=256, device=CPU, pretrained=False)
    assert encoder.dim == 768
    assert encoder(pictures(1, 256)).shape == (1, 324, 768)
    assert encoder.facts["model"] == DEFAULT_TRANSFORMER
    assert encoder.facts["tokens"] == "18 x 18"
    # Published: 86 580 480 with a mask token, which timm leaves out, and positions for 37 x 37 patches.
    kept = 86_580_480 - 768 * (1 + 37**2 - 18**2)
    assert sum(p.numel() for p in encoder._network.parameters()) == kept


def test_random_weights_are_named_by_the_hash_of_what_they_are(
    tmp_path: Path, folder: Path
) -> None:
    """As the project would write them; no weights are needed for that."""
    (folder / TIMM_WEIGHTS).unlink()
    first, again, other = (encoder_of(folder, seed) for seed in (0, 0, 1))
    save_tensors(tmp_path / "x.safetensors", first._network.vit.state_dict())
    assert first.facts["sha256"] == file_digest(tmp_path / "x.safetensors")
    assert again.facts == first.facts
    assert other.facts["sha256"] != first.facts["sha256"]


def encoder_of(folder: Path, seed: int) -> Any:
    """A random transformer."""
    with rng.scoped(seed, "random"):
        return patch_tokens(str(folder), size=70, device=CPU, pretrained=False)


def test_tokens_are_float32_frozen_and_always_the_same(folder: Path) -> None:
    """Half-precision weights are computed with in float32; dropout is off."""
    half = {name: t.half() for name, t in load_file(folder / TIMM_WEIGHTS).items()}
    save_file(half, folder / TIMM_WEIGHTS)
    edit(folder / "config.json", model_args=NARROW | {"proj_drop_rate": 0.5, "drop_path_rate": 0.5})
    encoder = patch_tokens(str(folder), size=70, device=CPU)
    first = encoder(pictures(2, 70))
    assert first.dtype == torch.float32
    assert not first.requires_grad
    assert torch.equal(encoder(pictures(2, 70)), first)
    assert not any(p.requires_grad for p in encoder._network.parameters())


def test_an_encoder_is_an_extractor_of_features(folder: Path) -> None:
    """Streamed over images, as the stage does it."""

    class Pictures(Numbered):
        def images(self, rows: Any) -> Tensor:
            return pictures(12, 70)[torch.as_tensor(rows)]

    encoder = patch_tokens(str(folder), size=70, device=CPU)
    pieces = image_features(Pictures(12), encoder, batch_images=5, max_vectors=999, seed=0)
    expected = encoder(pictures(12, 70)).flatten(0, 1)
    torch.testing.assert_close(torch.cat(list(pieces)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_a_device_gives_what_the_cpu_gives(folder: Path) -> None:
    """On the CPU, in float32; sums are in another order."""
    images = pictures(2, 70)
    found = patch_tokens(str(folder), size=70, device=torch.device("cuda"))(images)
    assert found.device.type == "cpu"
    expected = patch_tokens(str(folder), size=70, device=CPU)(images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_images_of_another_shape_are_an_error(folder: Path) -> None:
    """It says what they should be; grey ones as well."""
    encoder = patch_tokens(str(folder), size=64, device=CPU)
    for images in (pictures(1, 70), pictures(1, 64)[:, :1]):
        with pytest.raises(ValueError, match=r"set up for images \(3, 64, 64\), these are \("):
            encoder(images)


def test_images_smaller_than_a_patch_are_an_error(folder: Path) -> None:
    """There is no token in them: digits, for instance."""
    with pytest.raises(ValueError, match=r"images of 8 pixels are smaller than a patch"):
        patch_tokens(str(folder), size=8, device=CPU)


@pytest.mark.parametrize("name", ["vit_base_patch14_dinov2.lvd124m", "vit_base_patch14_dinov"])
def test_an_unknown_transformer_is_told_with_the_nearest_ones(name: str) -> None:
    """Neither the architecture nor the tag may be wrong."""
    with pytest.raises(ValueError, match=rf"no model '{name}'; near it: .*{DEFAULT_TRANSFORMER}"):
        patch_tokens(name, size=70, device=CPU)


def test_an_architecture_that_nobody_trained_is_an_error() -> None:
    """It has no weights to take tokens from."""
    with pytest.raises(ValueError, match="timm knows no weights of 'vit_base_patch32_plus_256' on"):
        patch_tokens("vit_base_patch32_plus_256", size=256, device=CPU)


@pytest.mark.parametrize("name", ["/no/such/folder", "local-dir:gone", "owner/model"])
def test_a_folder_that_does_not_exist_is_an_error(name: str) -> None:
    """It says what the folder should hold, and how to name a model on the hub."""
    with pytest.raises(ValueError, match=r"is not a folder; .*config\.json .*hf-hub:owner/model"):
        patch_tokens(name, size=70, device=CPU)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", [None, "hf-hub:owner/model"])
def test_without_network_the_message_says_how_to_go_on(name: str | None) -> None:
    """The command to run elsewhere."""
    repository = name.removeprefix("hf-hub:") if name else f"timm/{DEFAULT_TRANSFORMER}"
    with pytest.raises(RuntimeError, match=rf"cannot be had .*`hf download {repository}"):
        patch_tokens(name, size=70, device=CPU)


def test_a_folder_has_no_revision(folder: Path) -> None:
    """It would not be heeded."""
    with pytest.raises(ValueError, match="is a folder, which has no revision 'v1'"):
        patch_tokens(str(folder), size=70, revision="v1", device=CPU)


def drop_weights(folder: Path) -> None:
    (folder / TIMM_WEIGHTS).unlink()
    torch.save({}, folder / "pytorch_model.bin")  # a pickle is no replacement


def drop_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def cut_weights(folder: Path) -> None:
    os.truncate(folder / TIMM_WEIGHTS, (folder / TIMM_WEIGHTS).stat().st_size // 2)


def cut_config(folder: Path) -> None:
    os.truncate(folder / "config.json", 30)


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / TIMM_WEIGHTS)
    del tensors["blocks.1.norm1.bias"]
    save_file(tensors, folder / TIMM_WEIGHTS)


def other_width(folder: Path) -> None:
    edit(folder / "config.json", model_args=NARROW | {"embed_dim": 48})


def unknown_option(folder: Path) -> None:
    edit(folder / "config.json", model_args=NARROW | {"no_such_option": 1})


def transformers_config(folder: Path) -> None:
    edit(folder / "config.json", architecture=None, model_type="dinov2", hidden_size=768)


def list_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_weights, r"holds no model\.safetensors; copy the model's repository"),
        (drop_config, r"holds no config\.json; copy the model's repository"),
        (cut_weights, r"model\.safetensors is not a safetensors file"),
        (cut_config, r"config\.json is not JSON"),
        (drop_tensor, r"timm cannot build .*Missing key.*blocks\.1\.norm1\.bias"),
        (other_width, r"timm cannot build .*size mismatch"),
        (unknown_option, r"timm cannot build .*no_such_option"),
        (transformers_config, r"names the architecture None.* are timm/<name>"),
        (list_config, r"config\.json holds a list"),
    ],
)
def test_a_damaged_folder_is_an_error(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    """It names the file, or what in it does not fit."""
    damage(folder)
    with pytest.raises(ValueError, match=message):
        patch_tokens(str(folder), size=70, device=CPU)


def test_a_tensor_missing_from_a_classifier_is_an_error(tmp_path: Path) -> None:
    """Where timm drops the head, it takes whatever is missing for meant, and leaves it random."""
    source = timm_folder(tmp_path / "vit", "vit_small_patch16_224", img_size=64, num_classes=7)
    drop_tensor(source)
    with pytest.raises(ValueError, match=r"timm cannot build .*blocks\.1\.norm1\.bias"):
        patch_tokens(str(source), size=64, device=CPU)


@pytest.mark.parametrize("name", ["resnet18", "vit_small_patch16_dinov3"])
def test_another_kind_of_network_is_refused(name: str) -> None:
    """It names the class; DINOv3 is of another class of timm's."""
    with pytest.raises(ValueError, match=r"is a (ResNet|Eva); patch tokens come from a VisionTr"):
        patch_tokens(name, size=224, device=CPU, pretrained=False)


def test_importing_encoders_imports_none_of_the_libraries() -> None:
    """A stage pays for what it uses."""
    code = (
        "import sys, flowprior.encoders.networks, flowprior.features.of_images; "
        "print(sorted({'timm', 'diffusers', 'huggingface_hub', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stderr


def encoder_vit(**sizes: Any) -> VisionTransformer:
    """What an autoencoder of 32 pixels in patches of 8 builds for its encoder."""
    options = {"embed_dim": 24, "depth": 3, "num_heads": 2, "init_values": 0.5} | sizes
    with rng.scoped(1, "encoder"):
        return VisionTransformer(
            img_size=32, patch_size=8, num_classes=0, global_pool="", **options
        )


@pytest.fixture
def trained(tmp_path: Path) -> str:
    """A narrowed DINOv2 in timm's format."""
    sizes = {"img_size": 28, "embed_dim": 24, "depth": 3, "num_heads": 2}
    return f"local-dir:{timm_folder(tmp_path / 'trained', **sizes)}"


def test_an_encoder_takes_a_trained_transformers_weights(trained: str) -> None:
    """Blocks and norm as they are; the patches' kernel and the positions resampled to the new grid."""
    target = encoder_vit()
    found = trained_transformer(trained, 32, 8)
    found.into(target)
    folder = Path(trained.removeprefix("local-dir:"))
    theirs, ours = load_file(folder / TIMM_WEIGHTS), target.state_dict()
    for key, value in ours.items():
        if key.startswith(("blocks.", "norm.", "cls_token")):
            assert torch.equal(value, theirs[key]), key
    assert ours["patch_embed.proj.weight"].shape[-2:] == (8, 8)
    assert ours["pos_embed"].shape == (1, 17, 24)
    assert len(found.digest) == 64
    assert found.digest == found.facts["sha256"]


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"depth": 2}, "blocks.2"),
        ({"embed_dim": 32}, r"\(24,\), here \(32,\)"),
        ({"init_values": None}, "ls1.gamma"),
        ({"num_heads": 3}, "attention heads, there 2, here 3"),
    ],
)
def test_a_transformer_of_other_sizes_is_an_error_and_changes_nothing(
    trained: str, sizes: dict, said: str
) -> None:
    target = encoder_vit(**sizes)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(ValueError, match=rf"preset's sizes: .*{said}.*layer_scale"):
        trained_transformer(trained, 32, 8).into(target)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_sizes_can_be_checked_on_the_meta_device(trained: str) -> None:
    with torch.device("meta"):
        fits, wide = encoder_vit(), encoder_vit(embed_dim=32)
    trained_transformer(trained, 32, 8).check(fits)
    with pytest.raises(ValueError, match="preset's sizes"):
        trained_transformer(trained, 32, 8).check(wide)


def test_patch_tokens_may_have_patches_of_another_size(trained: str) -> None:
    """As many tokens as the autoencoder has patches, which SoftVQ's alignment asks for."""
    encoder = patch_tokens(trained, size=32, patch_size=8, device=torch.device("cpu"))
    assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, 16, 24)
    assert encoder.facts["tokens"] == "4 x 4"
