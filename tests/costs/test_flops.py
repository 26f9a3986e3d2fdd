"""Operations and memory on the meta device: what torch counts on real tensors, and what autograd keeps."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from timm.models import checkpoint_seq
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from flowprior.alignment.flows import EvidenceBound, FlowAlignment
from flowprior.autoencoder.shape import Shape
from flowprior.autoencoder.vit import build_autoencoder
from flowprior.core import rng
from flowprior.core.rng import Draw
from flowprior.costs.flops import META, measure
from flowprior.costs.hardware import (
    COPY_BYTES,
    FROZEN_BYTES,
    H100,
    LEARNED_BYTES,
    Hardware,
    Precision,
    num_parameters,
    state_bytes,
)
from flowprior.costs.sampling import sampling_flops
from flowprior.flow.losses import flow_matching_loss
from flowprior.flow.path import group_vectors, stratified_times
from flowprior.flow.velocity import VelocityMLP
from flowprior.mar.masking import draw_masking
from flowprior.mar.model import MAR
from flowprior.mar.shape import MARShape

CPU = torch.device("cpu")
SHAPE = Shape(
    image_size=32,
    channels=3,
    patch_size=8,
    num_latents=8,
    latent_dim=4,
    width=64,
    depth=3,
    num_heads=4,
)
MAR_SHAPE = MARShape(
    num_tokens=16,
    dim=4,
    num_classes=10,
    width=64,
    encoder_depth=2,
    decoder_depth=2,
    num_heads=4,
    num_buffer=4,
    head_width=96,
    head_depth=2,
    dropout=0.0,
)


def counted(step: Callable[[], Tensor]) -> int:
    """Torch's count of a step on real tensors, with the backward pass where there is one."""
    with FlopCounterMode(display=False) as counter:
        loss = step()
        if loss.requires_grad:
            loss.backward()
    return int(counter.get_total_flops())


def on(device: torch.device, draws: Tensor, dim: int = 0) -> Tensor:
    """All of them, there."""
    return draws.to(device)


# --- steps, as the stages take them, on the meta device and on real tensors -------------------------


def flow_step(device: torch.device) -> Callable[[], Tensor]:
    """The stage train_flow's."""
    with rng.scoped(0), device:
        velocity = VelocityMLP(dim=4, width=64, depth=2)

    def step() -> Tensor:
        draw = rng.generator(0)
        vectors = torch.randn(100, 4, generator=draw)
        data = group_vectors(vectors.to(device), 8)
        noise = group_vectors(rng.normal_like(vectors, draw).to(device), 8)
        t = stratified_times(len(data), vectors, draw).to(device)
        return flow_matching_loss(velocity, data, noise, t).mean()

    return step


def autoencoder_step(
    device: torch.device,
    *,
    objective: Any = FlowAlignment,
    checkpointed: bool = False,
    batch: int = 4,
) -> Callable[[], Tensor]:
    """The stage train_ae's, without judges."""
    with rng.scoped(0), device:
        autoencoder = build_autoencoder(SHAPE, "plain").checkpoint_gradients(checkpointed)
        velocity = VelocityMLP(dim=4, width=64, depth=2).requires_grad_(False)
        images = torch.zeros(batch, 3, 32, 32)
    pull = objective(velocity, 4, 4)

    def step() -> Tensor:
        restored, codes = autoencoder(images)
        draw = Draw(rng.generator(0), batch, partial(on, device))
        loss: Tensor = (restored - images).square().mean() + pull(codes, draw)
        return loss

    return step


def mar_step(device: torch.device) -> Callable[[], Tensor]:
    """The stage train_mar's."""
    with rng.scoped(0), device:
        mar = MAR(MAR_SHAPE)

    def step() -> Tensor:
        labels = torch.zeros(4, dtype=torch.long)
        batch = draw_masking(torch.zeros(4, 16, 4), labels, 2, rng.generator(0))
        there = (x.to(device) if isinstance(x, Tensor) else x for x in batch)
        loss: Tensor = mar(*there)
        return loss

    return step


@pytest.mark.parametrize(
    "build",
    [
        flow_step,
        autoencoder_step,
        partial(autoencoder_step, checkpointed=True),
        partial(autoencoder_step, objective=EvidenceBound),
        mar_step,
    ],
    ids=["flow", "autoencoder", "checkpointed", "second order", "mar"],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_operations_are_those_of_real_tensors(
    build: Callable[[torch.device], Callable[[], Tensor]], precision: Precision
) -> None:
    """Forward, backward and what is computed again; exactly, where attention has no dropout."""
    found = measure(build(META), precision).flops
    assert found == counted(build(CPU)) > 0


def test_attention_with_dropout_is_counted_as_a_gpu_runs_it() -> None:
    """On a CPU torch keeps the matrix of weights then, and does not compute it again: a fifth less attention."""

    def step(device: torch.device) -> Callable[[], Tensor]:
        q = torch.zeros(1, 2, 16, 8, device=device, requires_grad=True)
        return lambda: F.scaled_dot_product_attention(q, q, q, dropout_p=0.1).sum()

    product = 2 * 2 * 16 * 16 * 8
    assert measure(step(META)).flops == 7 * product
    assert counted(step(CPU)) == 6 * product


def test_a_step_may_take_backward_passes_on_the_way() -> None:
    def step() -> None:
        autoencoder_step(META)().backward()

    assert measure(step).flops == measure(autoencoder_step(META)).flops


def test_a_pass_without_gradient_is_counted_alone() -> None:
    step = autoencoder_step(META)
    with torch.no_grad():
        forward = measure(step)
    assert forward.kept_bytes == 0
    assert 0 < forward.flops < measure(step).flops / 2


# --- sampling ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance_scale": 2.0},
        {"solver": "heun"},
        {"solver": "heun", "guidance_scale": 2.0},
        {"final_head_steps": 2, "guidance_scale": 2.0, "guidance_interval": (0.3, 0.8)},
        {"num_iterations": 16, "head_steps": 1},
        {"num_iterations": 1},
    ],
    ids=str,
)
def test_sampling_costs_what_real_samples_cost(options: dict[str, Any]) -> None:
    """Within 2%: the embedding of times, which 8 sequences share here, is left out."""
    chosen = {"num_iterations": 4, "head_steps": 4, **options}
    with rng.scoped(0):
        real = MAR(MAR_SHAPE).eval()
    labels = torch.zeros(8, dtype=torch.long)
    expected = counted(lambda: real.sample(labels, rng.generator(0), **chosen)) / 8
    guided = chosen.pop("guidance_scale", 1.0) != 1
    with META:
        planned = MAR(MAR_SHAPE).eval()
    assert sampling_flops(planned, guided=guided, **chosen) == pytest.approx(expected, rel=0.02)


def test_sampling_a_single_token_is_counted() -> None:
    with META:
        mar = MAR(MAR_SHAPE._replace(num_tokens=1))
    one = sampling_flops(mar, num_iterations=1, head_steps=1)
    assert 0 < one < sampling_flops(mar, num_iterations=1, head_steps=2) < 2 * one


# --- memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_what_is_kept_grows_with_the_batch(precision: Precision, checkpointed: bool) -> None:
    """In proportion, as weights and their copies are not in it; the flow's times are a hundredth."""
    one, three = (
        measure(autoencoder_step(META, batch=b, checkpointed=checkpointed), precision).kept_bytes
        for b in (4, 12)
    )
    assert three == pytest.approx(3 * one, rel=0.02)


def test_a_linear_layer_keeps_its_input() -> None:
    """And under autocast the input in bf16; the weight and its copy are not counted."""
    with META:
        layer, x = nn.Linear(8, 2000), torch.zeros(16, 8, requires_grad=True)
    assert measure(lambda: layer(x).sum()).kept_bytes == 4 * 16 * 8
    assert measure(lambda: layer(x).sum(), "bf16").kept_bytes == 2 * 16 * 8


def test_what_is_kept_twice_counts_once() -> None:
    x = torch.zeros(100, device=META, requires_grad=True)

    def step() -> Tensor:
        y = x * 2
        return (y.exp().sum() + y.sin().sum() + y.cos().sum()).float()

    # exp keeps its output, sin and cos their one input.
    assert measure(step).kept_bytes == 4 * 200


def test_what_a_backward_pass_frees_is_not_kept_on() -> None:
    once = autoencoder_step(META)

    def twice() -> Tensor:
        once().backward()
        return once()

    assert measure(twice).kept_bytes == measure(once).kept_bytes


def test_bf16_about_halves_what_is_kept() -> None:
    """Not quite: the residual stream and what norms keep stay in float32."""
    whole, half = (measure(autoencoder_step(META), p).kept_bytes for p in ("fp32", "bf16"))
    assert 0.5 < half / whole < 0.7


def test_attention_keeps_no_matrix_of_weights() -> None:
    """Four times the tokens, four times the memory."""
    with META:
        block = Block(64, 4)

    def kept(n: int) -> int:
        return measure(lambda: block(torch.empty(1, n, 64, device=META)).sum()).kept_bytes

    assert kept(512) == pytest.approx(4 * kept(128), rel=0.01)


def test_checkpointed_blocks_keep_what_goes_into_them() -> None:
    with META:
        blocks = nn.Sequential(*(Block(64, 4) for _ in range(6)))

    def step(checkpointed: bool) -> Tensor:
        x = torch.empty(4, 32, 64, device=META, requires_grad=True) * 2
        out = checkpoint_seq(blocks, x, use_reentrant=False) if checkpointed else blocks(x)
        return out.sum()

    assert measure(lambda: step(True), "bf16").kept_bytes == pytest.approx(
        6 * 4 * 4 * 32 * 64, rel=0.2
    )
    assert measure(lambda: step(False), "bf16").kept_bytes > 5 * 6 * 4 * 4 * 32 * 64


def test_autocast_that_a_module_turns_off_is_off() -> None:
    """On the meta device torch has none; outside of `measure` it says so."""
    x = torch.zeros(4, 4, device=META)
    seen = []

    def step() -> None:
        seen.append((x @ x).dtype)
        with torch.autocast("meta", enabled=False):
            seen.append((x @ x).dtype)
        seen.append((x @ x).dtype)
        with torch.autocast("cpu", torch.bfloat16):
            seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)

    measure(step, "bf16")
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16]
    with pytest.raises(RuntimeError):
        torch.autocast("meta", torch.bfloat16)


def test_nothing_stays_installed_after_an_error() -> None:
    before = torch.autocast, torch.autograd._engine_run_backward

    def step() -> None:
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        measure(step, "bf16")
    assert (torch.autocast, torch.autograd._engine_run_backward) == before


# --- parameters and hours ---------------------------------------------------------------------------


def test_shared_parameters_count_once() -> None:
    with META:
        shared, other = nn.Linear(3, 4), nn.Linear(4, 3)
    both = nn.Sequential(shared, other)
    assert num_parameters([shared]) == 16
    assert num_parameters([both, shared]) == num_parameters([both]) == 16 + 15


def test_states_are_weights_gradients_moments_and_averages() -> None:
    learned, frozen = [nn.Linear(3, 4)], [nn.Linear(4, 3)]
    assert (LEARNED_BYTES, FROZEN_BYTES) == (5 * 4, 4)
    assert state_bytes(learned, frozen) == 20 * 16 + 4 * 15
    assert state_bytes(learned, frozen, "bf16") == 22 * 16 + 6 * 15
    assert COPY_BYTES == 2


def test_hours_are_operations_over_what_is_reached() -> None:
    hardware = Hardware(bf16_flops=100.0, fp32_flops=10.0, memory_bytes=1.0, utilisation=0.5)
    assert hardware.hours(50 * 3600, "bf16") == 1
    assert hardware.hours(5 * 3600, "fp32") == 1
    slower = hardware._replace(utilisation=0.25)
    assert slower.hours(50 * 3600, "bf16") == 2
    assert H100.hours(H100.bf16_flops * H100.utilisation * 3600, "bf16") == pytest.approx(1)
