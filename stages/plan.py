"""What a preset would cost, stage by stage, before any data or weights are there.

Reads   params.yaml
Prints  parameters, operations of a step, memory, disk and GPU-hours

    make plan PRESET=imagenet PLAN='--gpus 8 --utilisation 0.5'

Models are built on the meta device by the stages' own builders, and a step is counted as the stage
runs it (`flowprior.training.flops`). Left out: reading and decoding of images, elementwise
arithmetic, evaluation (Inception, nearest neighbours), what the stages `extract_features` and
`project` do on a CPU.
"""

import params
from params import Params, ParamsError

params.check(__name__)

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowprior import rng
from flowprior.flow.losses import flow_matching_loss
from flowprior.flow.path import group_vectors
from flowprior.models.autoencoder import Autoencoder, Shape, build_autoencoder
from flowprior.models.mar import MAR, MARShape, draw_num_masked
from flowprior.models.projection import Projection
from flowprior.models.velocity import VelocityMLP
from flowprior.objectives.build import build_objective
from flowprior.objectives.flows import DistributionMatching
from flowprior.prior import FlowPrior
from flowprior.rng import Draw
from flowprior.training.flops import (
    CHECKPOINT_BYTES,
    FROZEN_BYTES,
    H100,
    META,
    Cost,
    Hardware,
    Precision,
    measure,
    num_parameters,
    sampling_flops,
    state_bytes,
)

GIB = 2**30
DIGITS_SIZE = 8


class Facts(NamedTuple):
    """What only the data would tell.

    Attributes:
        train_images: Number of them.
        held_out_images: Likewise.
        num_classes: Labels.
        channels: Of an image.
        feature_vectors: Rows of the target features, before `max_vectors`.
        feature_dim: Their channels.
    """

    train_images: int
    held_out_images: int
    num_classes: int
    channels: int
    feature_vectors: int
    feature_dim: int


IMAGENET = Facts(1_281_167, 50_000, 1000, 3, 151_936, 896)
"""ImageNet-1k, and the table of embeddings of Qwen2.5-0.5B."""
DIGITS = Facts(1438, 359, 10, 1, 1797 * 9, 64)


class Work(NamedTuple):
    """What a stage does, as far as it costs.

    Attributes:
        learned: Modules that it trains, by name.
        frozen: Modules that it only asks.
        step: One step, see `measure`; None where nothing is left to count.
        num_steps: Of them; not whole where a batch is not full.
        precision: Of a step.
        batch: Items of a step, over all GPUs.
        disk_bytes: Of its artifact.
        checkpoint_bytes: Of what a killed run goes on from.
        counted_flops: Operations of a step, where it was counted in another way.
    """

    learned: dict[str, nn.Module]
    frozen: dict[str, nn.Module]
    step: Callable[[], Tensor | None] | None
    num_steps: float
    precision: Precision
    batch: int
    disk_bytes: float
    checkpoint_bytes: float = 0.0
    counted_flops: int = 0


class Row(NamedTuple):
    """A line of the plan.

    Attributes:
        stage: Its name.
        learned: Parameters.
        frozen: Parameters.
        steps: Number of them.
        step_flops: Operations of one, over all GPUs.
        state_bytes: Memory of weights, gradients, moments and averages, on each GPU.
        kept_bytes: Memory for the backward pass, over all GPUs.
        disk_bytes: Artifact and checkpoint.
        gpu_hours: At the stated utilisation.
        precision: Of a step.
    """

    stage: str
    learned: int
    frozen: int
    steps: float
    step_flops: int
    state_bytes: int
    kept_bytes: int
    disk_bytes: float
    gpu_hours: float
    precision: Precision

    def gpu_bytes(self, gpus: int) -> float:
        """Memory of each of so many GPUs."""
        return self.state_bytes + self.kept_bytes / gpus

    def gpus_needed(self, hardware: Hardware) -> int | None:
        """The fewest GPUs whose memory is enough; None where no number is."""
        room = hardware.memory_bytes - self.state_bytes
        return None if room <= 0 else max(1, math.ceil(self.kept_bytes / room))


def extract_features(cfg: Params, facts: Facts) -> Work:
    """A table of vectors, float16."""
    size = 2 * facts.feature_dim * _num_vectors(cfg, facts)
    return Work({}, {}, None, 0, "fp32", 0, size)


def project(cfg: Params, facts: Facts) -> Work:
    """The table again in fewer dims, float32."""
    size = 4 * cfg.scale.project.dim * _num_vectors(cfg, facts)
    return Work({}, {}, None, 0, "fp32", 0, size)


def train_flow(cfg: Params, facts: Facts) -> Work:
    """Vectors that share times in groups."""
    scale = cfg.scale.train_flow
    velocity = _velocity(cfg)
    vectors = torch.empty(scale.batch_vectors, cfg.scale.project.dim, device=META)
    groups = group_vectors(vectors, scale.time_groups)
    t = torch.empty(len(groups), 1, device=META)
    return _training(
        {"velocity": velocity},
        {},
        lambda: flow_matching_loss(velocity, groups, groups, t).mean(),
        scale.steps,
        scale.precision,
        scale.batch_vectors,
    )


def train_ae(cfg: Params, facts: Facts) -> Work:
    """Reconstruction, and the objective on the latents."""
    scale = cfg.scale.train_ae
    autoencoder, prior = _autoencoder(cfg, facts), _prior(cfg, facts)
    images, noise = _images(cfg, facts, scale.batch_images), _latents(cfg, scale.batch_images)
    objective = build_objective(
        cfg.align.objective,
        prior,
        lambda n, generator: torch.randn(n, prior.dim, generator=generator),
        num_draws=cfg.align.num_draws,
        t_max=cfg.align.t_max,
    )

    def step() -> None:
        draw = Draw(rng.generator(0), scale.batch_images, _to_meta)
        restored, codes = autoencoder(images, noise)
        reconstruction = (restored.float() - images).square().mean()
        (reconstruction + objective(codes, draw)).backward()
        if isinstance(objective, DistributionMatching):
            for _ in range(cfg.align.fake_updates):
                objective.fake_loss(objective.fake, codes, draw).backward()

    learned: dict[str, nn.Module] = {"autoencoder": autoencoder}
    if isinstance(objective, DistributionMatching):
        learned["fake_flow"] = objective.fake
    return _training(
        learned,
        {"flow_prior": prior},
        step,
        scale.steps,
        scale.precision,
        scale.batch_images,
        kept={"autoencoder": autoencoder},
    )


def encode_latents(cfg: Params, facts: Facts) -> Work:
    """Every image and, where asked for, its mirror image; the held-out ones also back again."""
    scale = cfg.scale.encode_latents
    autoencoder = _autoencoder(cfg, facts)
    images = _images(cfg, facts, scale.batch_images)
    views = 2 if scale.flip else 1
    num_images = facts.train_images + facts.held_out_images

    @torch.no_grad()
    def encode() -> None:
        autoencoder.encode(images)

    @torch.no_grad()
    def whole() -> None:
        autoencoder(images)

    encoded, restored = measure(encode).flops, measure(whole).flops
    share = facts.held_out_images / num_images
    shape = cfg.scale.train_ae.num_latents, cfg.scale.project.dim
    return Work(
        {},
        {"autoencoder": autoencoder},
        None,
        num_images / scale.batch_images,
        "fp32",
        scale.batch_images,
        num_images * (2 * views * math.prod(shape) + 8),
        counted_flops=round(views * encoded + share * restored),
    )


def train_mar(cfg: Params, facts: Facts) -> Work:
    """The mean number of tokens masked."""
    scale = cfg.scale.train_mar
    mar = _mar(cfg, facts)
    b, n = scale.batch_images, mar.shape.num_tokens
    m = _mean_masked(n)
    tokens = _latents(cfg, b)
    labels = torch.zeros(b, dtype=torch.long, device=META)
    orders = torch.zeros(b, n, dtype=torch.long, device=META)
    noise = torch.empty(scale.head_draws, b, m, mar.shape.dim, device=META)
    return _training(
        {"mar": mar},
        {},
        lambda: mar(tokens, labels, orders, m, noise, noise[..., 0]),
        scale.steps,
        scale.precision,
        b,
    )


def sample_eval(cfg: Params, facts: Facts) -> Work:
    """Images without guidance and as many with it."""
    scale = cfg.scale.sample_eval
    mar, autoencoder = _mar(cfg, facts).eval(), _autoencoder(cfg, facts)
    latents = _latents(cfg, 1)

    @torch.no_grad()
    def decode() -> None:
        autoencoder.decode(latents)

    options = {
        name: getattr(scale, name)
        for name in ("num_iterations", "head_steps", "final_head_steps", "solver")
        if hasattr(scale, name)
    }
    both = [
        sampling_flops(mar, **options, guided=guidance != 1)
        for guidance in (1.0, cfg.guidance.scale)
    ]
    per_image = sum(both) + 2 * measure(decode).flops
    pixels = facts.channels * cfg.scale.images.size**2
    return Work(
        {},
        {"mar": mar, "autoencoder": autoencoder},
        None,
        scale.num_samples / scale.batch_images,
        "fp32",
        scale.batch_images,
        2 * scale.num_samples * pixels,
        counted_flops=per_image * scale.batch_images,
    )


STAGES: dict[str, Callable[[Params, Facts], Work]] = {
    plan.__name__: plan
    for plan in (
        extract_features,
        project,
        train_flow,
        train_ae,
        encode_latents,
        train_mar,
        sample_eval,
    )
}
"""In the order of the pipeline."""


def row(stage: str, work: Work, hardware: Hardware) -> Row:
    """Count the work of a stage."""
    cost = (
        Cost(work.num_stepsed_flops, 0) if work.step is None else measure(work.step, work.precision)
    )
    learned, frozen = work.learned.values(), work.frozen.values()
    return Row(
        stage,
        num_parameters(learned),
        num_parameters(frozen),
        work.num_steps,
        cost.flops,
        state_bytes(learned, frozen),
        cost.kept_bytes,
        work.disk_bytes + work.checkpoint_bytes,
        hardware.hours(work.num_steps * cost.flops, work.precision),
        work.precision,
    )


def rows(cfg: Params, facts: Facts, hardware: Hardware) -> list[Row]:
    """The whole plan."""
    return [row(stage, plan(cfg, facts), hardware) for stage, plan in STAGES.items()]


def table(lines: Sequence[Row], hardware: Hardware, gpus: int) -> str:
    """The plan in words and figures."""
    heads = (
        "stage",
        "learned M",
        "frozen M",
        "steps",
        "TFLOP/step",
        "states GiB",
        "kept GiB",
        "GiB/GPU",
        "GPUs >=",
        "disk GiB",
        "GPU-hours",
        "",
    )
    cells = [heads] + [
        (
            line.stage,
            f"{line.learned / 1e6:.2f}",
            f"{line.frozen / 1e6:.2f}",
            f"{math.ceil(line.steps)}",
            f"{line.step_flops / 1e12:.4g}",
            f"{line.state_bytes / GIB:.2f}",
            f"{line.kept_bytes / GIB:.2f}",
            f"{line.gpu_bytes(gpus) / GIB:.2f}",
            f"{line.gpus_needed(hardware) or 'none'}",
            f"{line.disk_bytes / GIB:.3g}",
            f"{line.gpu_hours:.3g}",
            line.precision,
        )
        for line in lines
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if i in (0, len(heads) - 1) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    hours = sum(line.gpu_hours for line in lines)
    disk = sum(line.disk_bytes for line in lines) / GIB
    total = (
        f"in all {hours:.3g} GPU-hours, {hours / gpus:.3g} hours on {gpus} GPU{'s' * (gpus > 1)}, "
        f"{disk:.3g} GiB of disk besides the images"
    )
    return "\n".join([*text, "", total])


def load(preset: str, tree: Any) -> Params:
    """The parameters with another preset; placeholders for images where the file's do not go with it.

    Raises:
        ParamsError: There is no such preset, or the file cannot be used.
    """
    if isinstance(tree, Mapping) and preset != tree.get("preset"):
        tree = {**tree, "preset": preset}
        size = (((tree.get("presets") or {}).get(preset) or {}).get("images") or {}).get("size")
        if size not in (None, DIGITS_SIZE) and tree["images"]["source"] == "digits":
            tree["images"] = {**tree["images"], "source": "imagefolder", "path": "."}
            if tree["prior"]["source"] in params.OF_DIGITS:
                tree["prior"] = {**tree["prior"], "source": "textual", "path": None}
    return params.parse(tree)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the plan; a mistake is a message and exit status 2."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="imagenet")
    parser.add_argument("--gpus", type=int, default=8, help="that share a batch")
    parser.add_argument("--utilisation", type=float, default=H100.utilisation, help="share of peak")
    parser.add_argument("--bf16-tflops", type=float, default=H100.bf16_flops / 1e12)
    parser.add_argument("--fp32-tflops", type=float, default=H100.fp32_flops / 1e12)
    parser.add_argument("--memory-gib", type=float, default=H100.memory_bytes / GIB)
    for name in Facts._fields:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="default: by the preset")
    options = parser.parse_args(arguments)
    if not 0 < options.utilisation <= 1:
        parser.error(f"--utilisation {options.utilisation} is a share: above 0, at most 1")
    for name in ("gpus", "bf16_tflops", "fp32_tflops", "memory_gib", *Facts._fields):
        value = getattr(options, name)
        if value is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')} {value} must be positive")
    try:
        cfg = load(options.preset, params.read_yaml(params.ROOT / "params.yaml"))
    except ParamsError as error:
        print(f"params.yaml cannot be used:\n{error}", file=sys.stderr)
        sys.exit(2)
    usual = DIGITS if cfg.scale.images.size == DIGITS_SIZE else IMAGENET
    given = {name: getattr(options, name) for name in Facts._fields}
    facts = usual._replace(**{name: value for name, value in given.items() if value is not None})
    hardware = Hardware(
        options.bf16_tflops * 1e12,
        options.fp32_tflops * 1e12,
        options.memory_gib * GIB,
        options.utilisation,
    )
    print(
        f"preset {options.preset}, align.objective {cfg.align.objective}; assumed: {_said(facts)}"
    )
    print(
        f"{options.gpus} x {options.bf16_tflops:g} TFLOP/s in bf16, {options.fp32_tflops:g} in fp32, "
        f"of which {options.utilisation:.0%} are reached; {options.memory_gib:g} GiB each\n"
    )
    print(table(rows(cfg, facts, hardware), hardware, options.gpus))
    print(
        "kept: the most that is held for a backward pass, over all GPUs; GiB/GPU: states and a GPU's share of it. "
        "Not counted: reading images, elementwise arithmetic, evaluation."
    )


def _said(facts: Facts) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts._asdict().items())


def _training(
    learned: dict[str, nn.Module],
    frozen: dict[str, nn.Module],
    step: Callable[[], Tensor | None],
    num_steps: int,
    precision: Precision,
    batch: int,
    kept: dict[str, nn.Module] | None = None,
) -> Work:
    """A training stage; its artifact are the averages of the modules that are kept."""
    artifact = FROZEN_BYTES * num_parameters((kept or learned).values())
    checkpoint = CHECKPOINT_BYTES * num_parameters(learned.values())
    return Work(learned, frozen, step, num_steps, precision, batch, artifact, checkpoint)


def _velocity(cfg: Params) -> VelocityMLP:
    scale = cfg.scale.train_flow
    with META:
        return VelocityMLP(cfg.scale.project.dim, scale.width, scale.depth)


def _prior(cfg: Params, facts: Facts) -> FlowPrior:
    velocity = _velocity(cfg)
    with META:
        matrix = torch.empty(facts.feature_dim, velocity.dim)
        projection = Projection(matrix, 1.0, cfg.project.operator, cfg.seed)
    return FlowPrior(velocity, projection, cfg.scale.train_flow.time_groups)


def _autoencoder(cfg: Params, facts: Facts) -> Autoencoder:
    scale = cfg.scale.train_ae
    shape = Shape(
        image_size=cfg.scale.images.size,
        channels=facts.channels,
        patch_size=scale.patch_size,
        num_latents=scale.num_latents,
        latent_dim=cfg.scale.project.dim,
        width=scale.width,
        depth=scale.depth,
        num_heads=scale.num_heads,
    )
    with META:
        return build_autoencoder(shape, cfg.autoencoder.bottleneck)


def _mar(cfg: Params, facts: Facts) -> MAR:
    scale = cfg.scale.train_mar
    shape = MARShape(
        num_tokens=cfg.scale.train_ae.num_latents,
        dim=cfg.scale.project.dim,
        num_classes=facts.num_classes,
        **{name: getattr(scale, name) for name in MARShape._fields[3:]},
    )
    with META:
        return MAR(shape)


def _images(cfg: Params, facts: Facts, batch: int) -> Tensor:
    size = cfg.scale.images.size
    return torch.empty(batch, facts.channels, size, size, device=META)


def _latents(cfg: Params, batch: int) -> Tensor:
    return torch.empty(batch, cfg.scale.train_ae.num_latents, cfg.scale.project.dim, device=META)


def _num_vectors(cfg: Params, facts: Facts) -> int:
    return min(facts.feature_vectors, cfg.scale.extract_features.max_vectors)


def _mean_masked(n: int, draws: int = 1000) -> int:
    """Of a step, to the nearest token."""
    generator = rng.generator(0, "plan")
    return round(sum(draw_num_masked(n, generator) for _ in range(draws)) / draws)


def _to_meta(draws: Tensor, dim: int = 0) -> Tensor:
    return draws.to(META)


if __name__ == "__main__":
    main()
