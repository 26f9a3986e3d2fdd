"""Training steps beside their plain twins; a twin is the textbook way to the same expectation.

Run with `make bench`. Steps include the backward pass, and where something learns, the optimiser.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from flowprior import FlowPrior
from flowprior.autoencoder.shape import Shape
from flowprior.autoencoder.vit import build_autoencoder
from flowprior.core import rng
from flowprior.core.optim import adamw
from flowprior.flow.losses import flow_matching_loss, grouped_loss
from flowprior.flow.velocity import VelocityMLP
from flowprior.mar.masking import draw_masking
from flowprior.mar.model import MAR
from flowprior.mar.shape import MARShape
from flowprior.prior.projection import Projection

from .conftest import autocast
from .side_by_side import side_by_side

FLOW = (32, 1024, 6)
"""dim, width, depth of the paper's flow prior."""
VECTORS = {"cpu": (1024, 64), "gpu": (131_072, 1024)}
"""Vectors and time groups of a step."""
AE = {
    "cpu": (Shape(64, 3, 8, 32, 32, 256, 6, 8, None), 4, (32, 256, 6)),
    "gpu": (Shape(256, 3, 16, 64, 32, 1024, 24, 16, None), 64, FLOW),
}
"""Sizes, images of a step, and the flow; on a CPU both at a quarter of the paper's width."""
MARS = {
    "cpu": (MARShape(64, 32, 1000, 192, 3, 3, 6, 8, 512, 6, 0.0), 8),
    "gpu": (MARShape(64, 32, 1000, 768, 12, 12, 12, 64, 1024, 6, 0.1), 256),
}
HEAD_DRAWS = 4
SIZES = ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)]


def flow(device: torch.device, sizes: tuple[int, int, int] = FLOW) -> VelocityMLP:
    """A flow prior, untrained; the paper's."""
    with rng.scoped(0, "benchmark"):
        velocity = VelocityMLP(*sizes)
        nn.init.normal_(velocity.output.weight, std=0.02)
    return velocity.to(device)


def drawing(device: torch.device) -> torch.Generator:
    """Noise is drawn where it is used, as the stage does: a CPU would take longer for it than a GPU for the step."""
    return torch.Generator(device).manual_seed(0)


def plain_loss(velocity: VelocityMLP, vectors: Tensor, draw: torch.Generator) -> Tensor:
    """A time of its own, and so a modulation of its own, for every vector."""
    noise = rng.normal_like(vectors, draw)
    return flow_matching_loss(velocity, vectors, noise, rng.uniform((len(vectors),), vectors, draw))


def learning(
    module: nn.Module, loss: Callable[[], Tensor], device: torch.device
) -> Callable[[], None]:
    """A step of AdamW."""
    optimizer = adamw(module, 1e-4, (0.9, 0.95), 1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device):
            value = loss()
        value.backward()
        optimizer.step()

    return step


@pytest.mark.parametrize("size", SIZES)
def test_flow_prior_step(compared, device: torch.device, size: str) -> None:
    n, groups = VECTORS[size]
    vectors = torch.randn(n, FLOW[0], generator=rng.generator(0)).to(device)
    draw = partial(drawing, device)
    plain, ours = flow(device), flow(device)
    compared(
        "flow_prior_step",
        learning(plain, lambda: plain_loss(plain, vectors, draw()).mean(), device),
        learning(ours, lambda: grouped_loss(ours, vectors, groups, draw()).mean(), device),
        what=f"training step of the flow prior, width {FLOW[1]}, depth {FLOW[2]}, {n} vectors in {groups} groups",
        twin="a time for each vector",
        vectors=n,
        time_groups=groups,
    )


@pytest.mark.parametrize("size", SIZES)
def test_alignment_loss(compared, device: torch.device, size: str) -> None:
    n, groups = VECTORS[size]
    velocity = flow(device).requires_grad_(False)
    latents = torch.randn(n, FLOW[0], generator=rng.generator(0)).to(device).requires_grad_()

    def step(loss: Callable[[torch.Generator], Tensor]) -> Callable[[], None]:
        def once() -> None:
            with autocast(device):
                value = loss(drawing(device)).mean()
            value.backward()

        return once

    compared(
        "alignment_loss",
        step(lambda draw: plain_loss(velocity, latents, draw)),
        step(lambda draw: grouped_loss(velocity, latents, groups, draw)),
        what=f"alignment loss, width {FLOW[1]}, depth {FLOW[2]}, and its gradient to {n} latents in {groups} groups",
        twin="a time for each vector",
        latents=n,
        time_groups=groups,
    )


@pytest.mark.parametrize("size", SIZES)
def test_ae_step(compared, device: torch.device, size: str) -> None:
    """With the alignment loss of four draws; beside it one without."""
    shape, batch, sizes = AE[size]
    velocity = flow(device, sizes)
    identity = Projection(torch.eye(sizes[0]), 1.0, "identity", seed=0)
    prior = FlowPrior(velocity, identity, VECTORS[size][1])
    prior.to(device)
    images = torch.randn(batch, shape.channels, shape.image_size, shape.image_size).to(device)
    noise = torch.randn(batch, shape.num_latents, shape.latent_dim).to(device)

    def step(align: Callable[[Tensor], Tensor] | None) -> Callable[[], None]:
        with rng.scoped(0, "benchmark"):
            autoencoder = build_autoencoder(shape, "plain").to(device)

        def loss() -> Tensor:
            restored, codes = autoencoder(images, noise)
            value = (restored - images).square().mean()
            return value if align is None else value + 0.01 * align(codes.latents)

        return learning(autoencoder, loss, device)

    def plainly(latents: Tensor) -> Tensor:
        vectors = latents.flatten(0, 1).repeat(4, 1)
        return plain_loss(velocity, vectors, rng.generator(0, "draw")).mean()

    ours = step(lambda latents: prior.alignment_loss(latents, rng.generator(0, "draw"), 4))
    added = side_by_side(ours, step(None)).ratio - 1
    compared(
        "ae_step",
        step(plainly),
        ours,
        what=f"step of an autoencoder, width {shape.width}, depth {shape.depth}, {batch} images of "
        f"{shape.image_size} pixels, with a flow of width {sizes[1]}",
        twin="a time for each vector",
        images=batch,
        alignment_adds=added,
    )


@pytest.mark.parametrize("size", SIZES)
def test_mar_step(compared, device: torch.device, size: str) -> None:
    """The plain twin sends every token through the head, and leaves the visible ones out of the mean."""
    shape, batch = MARS[size]
    tokens = torch.randn(batch, shape.num_tokens, shape.dim, generator=rng.generator(0))
    labels = torch.arange(batch) % shape.num_classes

    def step(loss: Callable[[MAR, int], Tensor]) -> Callable[[], None]:
        with rng.scoped(0, "benchmark"):
            mar = MAR(shape).to(device)
        count = iter(range(10**9))
        return learning(mar, lambda: loss(mar, next(count)), device)

    def ours(mar: MAR, index: int) -> Tensor:
        batch_ = draw_masking(tokens, labels, HEAD_DRAWS, rng.generator(0, index))
        on_device = (x.to(device) if isinstance(x, Tensor) else x for x in batch_)
        value: Tensor = mar(*on_device)
        return value

    def plain(mar: MAR, index: int) -> Tensor:
        drawn = draw_masking(tokens, labels, HEAD_DRAWS, rng.generator(0, index))
        orders = drawn.orders.to(device)
        data = drawn.tokens.to(device)
        conditions = mar.conditions(data, drawn.labels.to(device), orders, drawn.num_masked)
        b, n, d = data.shape
        masked = torch.zeros(b, n, device=device).scatter(1, orders[:, : drawn.num_masked], 1.0)
        every = data.repeat(HEAD_DRAWS, 1, 1)
        head = partial(mar.head, condition=conditions.repeat(HEAD_DRAWS, 1, 1))
        noise = torch.randn(HEAD_DRAWS * b, n, d, device=device)
        t = torch.rand(HEAD_DRAWS * b, n, device=device)
        losses = flow_matching_loss(head, every, noise, t)
        weights = masked.repeat(HEAD_DRAWS, 1)
        return (losses * weights).sum() / weights.sum()

    compared(
        "mar_step",
        step(plain),
        step(ours),
        what=f"training step of MAR, width {shape.width}, head of width {shape.head_width}, {batch} images",
        twin="all tokens through the head",
        images=batch,
        head_draws=HEAD_DRAWS,
    )
