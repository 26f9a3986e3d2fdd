"""Latents of diffusers' autoencoders: real classes, small and with random weights."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowprior.core import rng
from flowprior.core.io import file_digest
from flowprior.encoders.diffusers_latents import (
    DEFAULT_AUTOENCODER,
    DIFFUSERS_WEIGHTS,
    autoencoder_latents,
)
from flowprior.encoders.encoder import Encoder

from .folders import CPU, edit, needs_diffusers, pictures, scatter, timm_folder
from .hub_cache import COMMIT, fill_cache


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


def drop_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def cut_config(folder: Path) -> None:
    os.truncate(folder / "config.json", 30)


def list_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


KL: dict[str, Any] = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 5,
    "scaling_factor": 0.5,
}


DC: dict[str, Any] = {
    "latent_channels": 6,
    "attention_head_dim": 4,
    **dict.fromkeys(
        ("encoder_block_types", "decoder_block_types"), ("ResBlock", "EfficientViTBlock")
    ),
    **dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (12, 24)),
    **dict.fromkeys(("encoder_layers_per_block", "decoder_layers_per_block"), (1, 1)),
    **dict.fromkeys(("encoder_qkv_multiscales", "decoder_qkv_multiscales"), ((), (5,))),
    "scaling_factor": 0.5,
}


CONFIGS = {"AutoencoderKL": KL, "AutoencoderDC": DC}


RATIOS = {"AutoencoderKL": 4, "AutoencoderDC": 2}


kinds = pytest.mark.parametrize("kind", list(CONFIGS))


def saved_autoencoder(folder: Path, kind: str) -> Any:
    """A small autoencoder, written by diffusers itself."""
    import diffusers

    with rng.scoped(0, kind):
        network = getattr(diffusers, kind)(**CONFIGS[kind]).eval()
    scatter(network)
    network.save_pretrained(folder)
    return network


def by_hand(network: Any, images: Tensor) -> Tensor:
    """Latents [b, C, h, w], from the parts of an autoencoder."""
    with torch.no_grad():
        code = network.encoder(images)
        if type(network).__name__ == "AutoencoderKL":
            code = network.quant_conv(code)[:, :5]  # the mean comes first, then the log-variance
    return code


@needs_diffusers
@kinds
def test_latents_are_tokens_row_by_row_without_a_scale(tmp_path: Path, kind: str) -> None:
    """Of a posterior the mean, which has no draw in it; the config's scaling factor is left out."""
    network = saved_autoencoder(tmp_path / "vae", kind)
    encoder = autoencoder_latents(str(tmp_path / "vae"), device=CPU)
    images = pictures(3, 24)
    found = encoder(images)
    expected = by_hand(network, images)
    assert expected.shape[2:] == (24 // RATIOS[kind],) * 2
    rows = [
        expected[:, :, y, x] for y in range(expected.shape[2]) for x in range(expected.shape[3])
    ]
    torch.testing.assert_close(found, torch.stack(rows, dim=1), rtol=1e-4, atol=1e-4)
    assert found.std() > 0.1
    assert encoder.dim == expected.shape[1]
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.equal(encoder(images), found)
    assert encoder.facts == {
        "model": "vae",
        "class": kind,
        "sha256": file_digest(tmp_path / "vae" / DIFFUSERS_WEIGHTS),
    }


@needs_diffusers
@pytest.mark.parametrize("name", [None, "stabilityai/sd-vae-ft-mse"])
def test_autoencoders_of_the_hub_come_from_its_cache(
    tmp_path: Path, cache: Path, name: str | None
) -> None:
    """The class is that of the config; the facts have the commit."""
    kind = "AutoencoderKL" if name else "AutoencoderDC"
    network = saved_autoencoder(tmp_path / "vae", kind)
    repository = name or DEFAULT_AUTOENCODER
    fill_cache(cache, repository, tmp_path / "vae", COMMIT, "v1")
    encoder = autoencoder_latents(name, revision="v1", device=CPU)
    images = pictures(1, 16)
    expected = by_hand(network, images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-4)
    assert encoder.facts == {
        "model": repository,
        "revision": COMMIT,
        "class": kind,
        "sha256": file_digest(tmp_path / "vae" / DIFFUSERS_WEIGHTS),
    }


@needs_diffusers
def test_old_names_of_the_attention_are_read(tmp_path: Path) -> None:
    """Most published AutoencoderKL have them."""
    network = saved_autoencoder(tmp_path, "AutoencoderKL")
    new = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    old = {}
    for name, tensor in load_file(tmp_path / DIFFUSERS_WEIGHTS).items():
        for now, then in new.items():
            name = name.replace(now, then)
        old[name] = tensor
    assert "encoder.mid_block.attentions.0.query.weight" in old
    save_file(old, tmp_path / DIFFUSERS_WEIGHTS)
    images = pictures(1, 16)
    expected = by_hand(network, images).flatten(2).transpose(1, 2)
    found = autoencoder_latents(str(tmp_path), device=CPU)(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@needs_diffusers
def test_half_precision_weights_are_computed_with_in_float32(tmp_path: Path) -> None:
    """Float16 overflows in some autoencoders."""
    network = saved_autoencoder(tmp_path, "AutoencoderKL").half().float()
    half = {name: t.half() for name, t in load_file(tmp_path / DIFFUSERS_WEIGHTS).items()}
    save_file(half, tmp_path / DIFFUSERS_WEIGHTS)
    images = pictures(1, 16)
    found = autoencoder_latents(str(tmp_path), device=CPU)(images)
    expected = by_hand(network, images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@needs_diffusers
def test_the_default_has_32_channels_in_8_x_8_places_of_256_pixels() -> None:
    """DC-AE f32c32 with the sizes of its published config, on the meta device."""
    from diffusers import AutoencoderDC

    from flowprior.encoders import diffusers_latents

    with torch.device("meta"):
        network = AutoencoderDC(
            latent_channels=32,
            encoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
            decoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
            encoder_block_out_channels=(128, 256, 512, 512, 1024, 1024),
            decoder_block_out_channels=(128, 256, 512, 512, 1024, 1024),
            encoder_layers_per_block=(0, 4, 8, 2, 2, 2),
            decoder_layers_per_block=(0, 5, 10, 2, 2, 2),
            encoder_qkv_multiscales=((),) * 6,
            decoder_qkv_multiscales=((),) * 6,
            downsample_block_type="Conv",
        )
        with torch.no_grad():
            tokens = diffusers_latents._Latents(network, 32)(torch.empty(2, 3, 256, 256))
    assert tokens.shape == (2, 64, 32)


@needs_diffusers
def test_only_the_encoder_is_kept(tmp_path: Path) -> None:
    """The decoder would take the larger part of the memory."""
    network = saved_autoencoder(tmp_path, "AutoencoderDC")
    encoder: Encoder = autoencoder_latents(str(tmp_path), device=CPU)
    kept = sum(p.numel() for p in encoder._network.parameters())
    assert kept == sum(p.numel() for p in network.encoder.parameters())


@needs_diffusers
@kinds
@pytest.mark.parametrize("shape", [(1, 3, 24, 27), (1, 3, 27, 24), (1, 1, 24, 24)])
def test_images_that_do_not_fit_are_an_error(
    tmp_path: Path, kind: str, shape: tuple[int, ...]
) -> None:
    """Sides that leave a rest, or channels other than three."""
    saved_autoencoder(tmp_path, kind)
    encoder = autoencoder_latents(str(tmp_path), device=CPU)
    with pytest.raises(ValueError, match=rf"3 channels and sides that {RATIOS[kind]} divides"):
        encoder(torch.zeros(shape))


def other_class(folder: Path) -> None:
    edit(folder / "config.json", _class_name="VQModel")


def no_class(folder: Path) -> None:
    edit(folder / "config.json", _class_name=None)


def other_channels(folder: Path) -> None:
    edit(folder / "config.json", latent_channels=7)


def wrong_type(folder: Path) -> None:
    edit(folder / "config.json", latent_channels="many")


def drop_encoder_tensor(folder: Path) -> None:
    tensors = load_file(folder / DIFFUSERS_WEIGHTS)
    del tensors["encoder.conv_in.bias"]
    save_file(tensors, folder / DIFFUSERS_WEIGHTS, metadata={"format": "pt"})


def cut_autoencoder(folder: Path) -> None:
    os.truncate(folder / DIFFUSERS_WEIGHTS, (folder / DIFFUSERS_WEIGHTS).stat().st_size // 2)


def pickled_autoencoder(folder: Path) -> None:
    tensors = load_file(folder / DIFFUSERS_WEIGHTS)
    (folder / DIFFUSERS_WEIGHTS).unlink()
    torch.save(tensors, folder / "diffusion_pytorch_model.bin")


@needs_diffusers
@kinds
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_class, "the _class_name 'VQModel'; latents come from AutoencoderDC or Auto"),
        (no_class, "the _class_name None; latents come from"),
        (other_channels, "diffusers cannot build .*expected shape"),
        (wrong_type, "diffusers cannot build "),
        (drop_encoder_tensor, r"lacks 1 tensors, among them encoder\.conv_in\.bias"),
        (cut_autoencoder, r"diffusion_pytorch_model\.safetensors is not a safetensors file"),
        (pickled_autoencoder, r"holds no diffusion_pytorch_model\.safetensors; copy"),
        (drop_config, r"holds no config\.json; copy"),
        (cut_config, r"config\.json is not JSON"),
        (list_config, r"config\.json holds a list"),
    ],
)
def test_a_damaged_autoencoder_is_an_error(
    tmp_path: Path, kind: str, damage: Callable[[Path], None], message: str
) -> None:
    """It names the file, or what in it does not fit."""
    saved_autoencoder(tmp_path, kind)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        autoencoder_latents(str(tmp_path), device=CPU)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", [None, "owner/model"])
def test_without_network_the_message_says_how_to_bring_the_autoencoder(name: str | None) -> None:
    """The command to run elsewhere."""
    with pytest.raises(
        RuntimeError, match=rf"cannot be had .*`hf download {name or DEFAULT_AUTOENCODER}"
    ):
        autoencoder_latents(name, device=CPU)


@pytest.mark.usefixtures("cache")
def test_a_folder_of_an_autoencoder_that_does_not_exist_is_an_error() -> None:
    """Nor is it a name on the hub."""
    with pytest.raises(ValueError, match="'/no/such/folder' is no folder that can be used here"):
        autoencoder_latents("/no/such/folder", device=CPU)


def test_without_diffusers_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra that has it."""
    save_file({"a": torch.zeros(1)}, tmp_path / DIFFUSERS_WEIGHTS)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'flowprior\[imagenet\]'"):
        autoencoder_latents(str(tmp_path), device=CPU)
