"""Sampling from MAR beside the textbook loop, what fewer steps save and cost, and exact densities.

Run with `make bench`, after `dvc repro`: the quality of fast sampling is that of the trained digits model.
"""

import math
import statistics
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowprior import FlowPrior
from flowprior.config.presets import load_params
from flowprior.core import rng
from flowprior.core.root import find_root
from flowprior.evaluation.digits import OnDigits
from flowprior.flow.velocity import VelocityMLP
from flowprior.generation.sampler import Sampler
from flowprior.images.opening import open_images
from flowprior.mar.model import MAR
from flowprior.mar.schedules import mask_schedule
from flowprior.mar.shape import MARShape
from flowprior.prior.projection import Projection

from .conftest import autocast, keep

MARS = {
    "cpu": (MARShape(64, 32, 1000, 192, 3, 3, 6, 8, 256, 3, 0.0), 8, 16, 20),
    "gpu": (MARShape(64, 32, 1000, 768, 12, 12, 12, 64, 1024, 6, 0.0), 256, 16, 99),
}
"""Sizes, images, iterations, steps of the head; on a GPU the paper's, but for a quarter of the iterations."""
SIZES = ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)]
FAST: dict[bool, dict[str, Any]] = {
    False: {"num_iterations": 4, "head_steps": 16, "final_head_steps": 4, "solver": "euler"},
    True: {"num_iterations": 4, "head_steps": 6, "final_head_steps": 4, "solver": "heun"},
}
"""Against the preset's settings, without and with guidance, which bends the head's paths: half of the iterations, and
ever fewer steps of the head."""
NOISES = 4
"""Draws of the samples, for the spread of their quality."""


def untrained(shape: MARShape, device: torch.device) -> MAR:
    """With outputs that are not zero, as a trained one's."""
    with rng.scoped(0, "benchmark"):
        mar = MAR(shape)
        nn.init.normal_(mar.head.output.weight, std=0.02)
    return mar.to(device).eval()


@torch.no_grad()
def plain_sample(
    mar: MAR, labels: Tensor, iterations: int, head_steps: int, guidance: float
) -> Tensor:
    """The textbook loop: with guidance everything runs twice, once with the class and once without."""
    device = labels.device
    b, n, d = len(labels), mar.shape.num_tokens, mar.shape.dim
    draw = rng.generator(0, "draw")
    like = mar.encoder_positions
    orders = rng.uniform((b, n), like, draw).argsort(dim=-1)
    tokens = torch.zeros(b, n, d, device=device)
    masked = n
    nobody = torch.full_like(labels, mar.no_class)
    for left in mask_schedule(n, iterations):
        new = orders[:, left:masked]
        index = new.unsqueeze(-1)
        conditions = [
            mar.conditions(tokens, context, orders, masked).gather(
                1, index.expand(-1, -1, mar.shape.width)
            )
            for context in ([labels, nobody] if guidance != 1 else [labels])
        ]
        x = rng.normal((b, masked - left, d), like, draw)
        scale = 1 + (guidance - 1) * (n - left) / n
        times = torch.linspace(0, 1, head_steps + 1).tolist()
        for now, then in pairwise(times):
            t = torch.full(x.shape[:-1], now, device=device)
            velocities = [mar.head(x, t, condition) for condition in conditions]
            v = velocities[-1] + scale * (velocities[0] - velocities[-1])
            x = x + (then - now) * v
        tokens.scatter_(1, index.expand(-1, -1, d), x)
        masked = left
    return tokens


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("size", SIZES)
def test_mar_sample(compared, device: torch.device, size: str, guidance: float) -> None:
    shape, images, iterations, head_steps = MARS[size]
    mar = untrained(shape, device).requires_grad_(False)
    labels = torch.arange(images, device=device) % shape.num_classes
    gpu = device.type == "cuda"
    quick = deepcopy(mar).ready_to_sample("bf16" if gpu else "fp32", compile=gpu)

    def ours(model: MAR) -> Tensor:
        with autocast(device):
            return model.sample(
                labels,
                rng.generator(0, "draw"),
                num_iterations=iterations,
                head_steps=head_steps,
                guidance_scale=guidance,
            )

    def plain() -> Tensor:
        with autocast(device):
            return plain_sample(mar, labels, iterations, head_steps, guidance)

    textbook = plain()
    assert (textbook - ours(quick)).norm() < (0.1 if gpu else 1e-4) * textbook.norm()
    guided = guidance != 1
    name = "mar_sample_guided" if guided else "mar_sample"
    medians = compared(
        name,
        plain,
        partial(ours, quick),
        what=f"sampling {images} images from MAR, width {shape.width}{', with guidance' if guided else ''}",
        twin="two passes for each step" if guided else "the textbook loop",
        counted=partial(ours, mar),
        images=images,
        iterations=iterations,
        head_steps=head_steps,
    )
    keep(name, {"ms_per_image": 1e3 * medians.seconds / images})


@pytest.mark.parametrize("guided", [False, True])
def test_fast_sampling_of_the_trained_model(compared, guided: bool) -> None:
    """The preset's settings beside fast ones; and the Fréchet distance of both, over several draws of the samples."""
    root = find_root()
    cfg = load_params(root)
    if not cfg.on_digits or not (root / "data/mar/manifest.json").exists():
        pytest.skip("needs the trained digits model: dvc repro")
    sampler = Sampler(root / "data", torch.device("cpu"))
    train, held_out = (open_images(split=s, **cfg.image_source) for s in ("train", "validation"))
    evaluator = OnDigits(train, held_out, 500)
    scale = cfg.sample_eval
    labels = torch.arange(scale.num_samples) % train.num_classes
    guidance = cfg.guidance.scale if guided else 1.0
    fast = FAST[guided]
    usual = {name: getattr(scale, name) for name in fast}

    def drawn(settings: dict[str, Any], noise: int = 0) -> Tensor:
        draw = rng.generator(noise, "fast")
        return sampler(labels, draw, guidance_scale=guidance, **settings)

    before, after = (
        [evaluator.judge([drawn(settings, noise)])["fd_digits"] for noise in range(NOISES)]
        for settings in (usual, fast)
    )
    compared(
        "mar_sample_fast_guided" if guided else "mar_sample_fast",
        partial(drawn, usual),
        partial(drawn, fast),
        what=f"sampling digits, {fast['num_iterations']} iterations, {fast['head_steps']} to "
        f"{fast['final_head_steps']} {fast['solver'].title()} steps{', with guidance' if guided else ''}",
        twin=f"the preset's {usual['num_iterations']} iterations, {usual['head_steps']} "
        f"{usual['solver'].title()} steps",
        counted=False,
        fd_digits=statistics.mean(after),
        fd_digits_usual=statistics.mean(before),
        fd_digits_std_over_draws=math.sqrt(
            (statistics.variance(before) + statistics.variance(after)) / 2
        ),
        **fast,
    )


@pytest.mark.parametrize("size", SIZES)
def test_exact_nll(compared, device: torch.device, size: str) -> None:
    """The plain twin gives every vector a time of its own, as a field that is written for batches of times gets."""
    dim, width, depth, n = (32, 256, 4, 64) if size == "cpu" else (32, 1024, 6, 4096)
    with rng.scoped(0, "benchmark"):
        velocity = VelocityMLP(dim, width, depth)
        nn.init.normal_(velocity.output.weight, std=0.02)
    prior = FlowPrior(velocity, Projection(torch.eye(dim), 1.0, "identity", seed=0)).to(device)
    points = torch.randn(n, dim, generator=rng.generator(0)).to(device)

    class PerVector(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            out: Tensor = prior.velocity(x, t.expand(len(x)))
            return out

    from flowprior.flow.likelihood import log_density

    work: list[Callable[[], Any]] = [
        lambda: -log_density(PerVector(), points),
        lambda: prior.nll(points),
    ]
    assert torch.allclose(work[0](), work[1](), atol=1e-2)
    compared(
        "exact_nll",
        *work,
        what=f"exact NLL of {n} vectors, {dim} dims, width {width}, depth {depth}",
        twin="a time for each vector",
        vectors=n,
    )
