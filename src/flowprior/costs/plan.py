"""What a preset would cost, stage by stage, before any data or weights are there.

The plan has parameters, operations of a step, memory, disk and GPU-hours. `flowprior.costs.stages` says what is
counted and what is left out.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from flowprior.config.schema import Params
from flowprior.costs.facts import Facts
from flowprior.costs.hardware import Hardware, Precision, num_parameters, state_bytes
from flowprior.costs.stages import STAGES, count
from flowprior.costs.work import Work

GIB = 2**30
BUCKET_BYTES = 4
"""Memory of a learned parameter on more than one GPU: the buckets in which gradients are averaged."""
HEADS = (
    "stage",
    "learned M",
    "frozen M",
    "steps",
    "batch",
    "TFLOP/step",
    "GFLOP/item",
    "states GiB",
    "kept GiB",
    "GiB/GPU",
    "GPUs >=",
    "disk GiB",
    "GPU-hours",
    "",
)


class Row(NamedTuple):
    """What the plan says of a stage.

    Attributes:
        stage: Its name.
        learned: Number of parameters that it trains.
        frozen: Number of parameters that it only asks.
        steps: Number of steps.
        batch: Items of a step.
        step_flops: Operations of a step, over all GPUs.
        state_bytes: Memory of weights, gradients, moments and averages, on each GPU.
        kept_bytes: Memory for the backward pass, over all GPUs.
        disk_bytes: Size of artifact and checkpoint.
        gpu_hours: Hours of one GPU, at the stated utilisation.
        precision: Precision of a step.
        parts: Operations for each item, by name.
        uncounted: What is in none of the numbers, a line each.
    """

    stage: str
    learned: int
    frozen: int
    steps: float
    batch: int
    step_flops: float
    state_bytes: int
    kept_bytes: int
    disk_bytes: float
    gpu_hours: float
    precision: Precision
    parts: Mapping[str, float]
    uncounted: Sequence[str] = ()

    def gpu_bytes(self, gpus: int) -> float:
        """Memory of each of so many GPUs."""
        buckets = BUCKET_BYTES * self.learned if gpus > 1 else 0
        return self.state_bytes + buckets + self.kept_bytes / gpus

    def gpus_needed(self, hardware: Hardware) -> int | None:
        """The fewest GPUs whose memory is enough; None where no number is."""
        if self.gpu_bytes(1) <= hardware.memory_bytes:
            return 1
        room = hardware.memory_bytes - self.state_bytes - BUCKET_BYTES * self.learned
        return max(2, math.ceil(self.kept_bytes / room)) if room > 0 else None


def row(stage: str, work: Work, hardware: Hardware) -> Row:
    """What the plan says of a stage that does this work."""
    learned, frozen = work.learned.values(), work.frozen.values()
    return Row(
        stage,
        num_parameters(learned),
        num_parameters(frozen),
        work.num_steps,
        work.batch,
        work.cost.flops,
        state_bytes(learned, frozen, work.precision),
        work.cost.kept_bytes,
        work.disk_bytes + work.checkpoint_bytes,
        hardware.hours(work.num_steps * work.cost.flops, work.precision),
        work.precision,
        work.parts,
        work.uncounted,
    )


def rows(cfg: Params, facts: Facts, hardware: Hardware) -> list[Row]:
    """The whole plan, a row for each stage; errors as of `flowprior.costs.stages.count`."""
    return [row(stage, count(stage, cfg, facts), hardware) for stage in STAGES]


def describe(cfg: Params, facts: Facts, hardware: Hardware, gpus: int) -> str:
    """The whole plan in words and figures, many lines.

    Args:
        cfg: The parameters.
        facts: What is assumed of the data.
        hardware: Each of the GPUs.
        gpus: How many GPUs share a batch.

    Raises:
        ValueError: The parameters name a network that does not exist.
        ModuleNotFoundError: A package of an extra is needed and absent.
    """
    lines = rows(cfg, facts, hardware)
    said = ", ".join(f"{name} {value}" for name, value in facts._asdict().items())
    text = [
        f"preset {cfg.preset}, prior.source {cfg.prior.source}, align.objective {cfg.align.objective}; "
        f"assumed: {said}",
        f"{gpus} x {hardware.bf16_flops / 1e12:g} TFLOP/s in bf16, {hardware.fp32_flops / 1e12:g} in fp32, "
        f"of which {hardware.utilisation:.0%} are reached; {hardware.memory_bytes / GIB:g} GiB each",
        "",
        table(lines, hardware, gpus),
        *_details(cfg, lines),
        "states: on each GPU; kept: the most that is held for a backward pass, over all GPUs; "
        "disk: artifact and checkpoint, of which there are two while one is written.",
        "Not counted: reading images, elementwise arithmetic, evaluation, features other than a transformer's.",
    ]
    return "\n".join(text)


def table(lines: Sequence[Row], hardware: Hardware, gpus: int) -> str:
    """The rows as a table with a line below that sums up."""
    cells = [HEADS, *(_cells(line, hardware, gpus) for line in lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if i in (0, len(HEADS) - 1) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    hours = sum(line.gpu_hours for line in lines)
    disk = sum(line.disk_bytes for line in lines) / GIB
    least = "at least " if any(line.uncounted for line in lines) else ""
    total = (
        f"in all {least}{hours:.3g} GPU-hours, {hours / gpus:.3g} hours on {gpus} GPU{'s' * (gpus > 1)}, "
        f"{disk:.3g} GiB of disk besides the images"
    )
    return "\n".join([*text, "", total])


def _cells(line: Row, hardware: Hardware, gpus: int) -> tuple[str, ...]:
    return (
        line.stage,
        f"{line.learned / 1e6:.2f}",
        f"{line.frozen / 1e6:.2f}",
        f"{math.ceil(line.steps)}",
        f"{line.batch}",
        f"{line.step_flops / 1e12:.4g}",
        f"{line.step_flops / max(1, line.batch) / 1e9:.4g}",
        f"{line.state_bytes / GIB:.2f}",
        f"{line.kept_bytes / GIB:.2f}",
        f"{line.gpu_bytes(gpus) / GIB:.2f}",
        f"{line.gpus_needed(hardware) or 'none'}",
        f"{line.disk_bytes / GIB:.3g}",
        f"{line.gpu_hours:.3g}",
        f"{line.precision}{', in part' if line.uncounted else ''}",
    )


def _details(cfg: Params, lines: Sequence[Row]) -> Iterator[str]:
    """What the table has no column for."""
    for line in filter(lambda line: line.parts, lines):
        parts = (f"{name} {flops / 1e9:.4g}" for name, flops in line.parts.items())
        yield f"{line.stage}, GFLOP an item: {', '.join(parts)}"
    game = cfg.train_ae.adversarial
    if game.weight:
        yield (
            f"adversarial: from step {game.start_step} on; TFLOP/step is the mean over all steps, "
            "kept GiB is with it"
        )
    for line in lines:
        for reason in line.uncounted:
            yield f"{line.stage}: not counted: {reason}"
