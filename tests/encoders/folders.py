"""Folders of models with random weights, in the real formats."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from flowprior.core import rng

CPU = torch.device("cpu")


DINOV2 = "vit_base_patch14_dinov2"


NARROW = {"img_size": 70, "embed_dim": 24, "depth": 2, "num_heads": 2}


needs_diffusers = pytest.mark.skipif(find_spec("diffusers") is None, reason="needs diffusers")


def pictures(n: int, size: int) -> Tensor:
    """Images of broad colours and fine noise in [-1, 1]; many pixels are at the ends, and resizing overshoots."""
    draw = rng.generator(0, "pictures", size)
    broad = torch.randn(n, 3, 4, 4, generator=draw)
    noise = torch.randn(n, 3, size, size, generator=draw)
    return (nn.functional.interpolate(broad, (size, size), mode="bicubic") + noise).clamp(-1, 1)


def scatter(network: nn.Module, seed: int = 0) -> None:
    """Give every parameter random values; as initialised, DINOv2's blocks do next to nothing."""
    draw = rng.generator(seed, "weights")
    with torch.no_grad():
        for value in network.parameters():
            value.add_(torch.randn(value.shape, generator=draw) / 4)


def timm_folder(folder: Path, architecture: str = DINOV2, **options: Any) -> Path:
    """A transformer in timm's own format, written by timm; normalised as no other."""
    with rng.scoped(0, "saved"):
        vit = timm.create_model(architecture, **(NARROW | options))
    scatter(vit)
    vit.pretrained_cfg |= {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    timm.models.save_for_hf(vit, str(folder), safe_serialization=True)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """DINOv2's architecture, narrowed."""
    return timm_folder(tmp_path / "dino")


def edit(file: Path, **entries: Any) -> None:
    """Replace entries of a JSON file; None takes one out."""
    found = json.loads(file.read_text()) | entries
    file.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))
