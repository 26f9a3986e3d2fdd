"""What a preset would cost, stage by stage, before any data or weights are there.

Reads   params.yaml
Prints  parameters, operations of a step, memory, disk and GPU-hours

    make plan PRESET=imagenet PLAN='--gpus 8 --utilisation 0.5'

`costs.py` says what is counted and what is left out.
"""

from flowprior.config import params
from flowprior.config.params import Params, ParamsError

params.check(__name__)

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

from flowprior.costs.flops import H100, Hardware, Precision, num_parameters, state_bytes
from flowprior.costs.stages import STAGES, Facts, Work, assumed

GIB = 2**30
BUCKET_BYTES = 4
"""Of a learned parameter on more than one GPU: the buckets in which gradients are averaged."""


class Row(NamedTuple):
    """A line of the plan.

    Attributes:
        stage: Its name.
        learned: Parameters.
        frozen: Parameters.
        steps: Number of them.
        batch: Items of a step.
        step_flops: Operations of one, over all GPUs.
        state_bytes: Memory of weights, gradients, moments and averages, on each GPU.
        kept_bytes: Memory for the backward pass, over all GPUs.
        disk_bytes: Artifact and checkpoint.
        gpu_hours: At the stated utilisation.
        precision: Of a step.
        parts: Operations for each item, by name.
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
    """The line of a stage."""
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
    cells = [heads] + [
        (
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


def load(preset: str, tree: object) -> Params:
    """The parameters with another preset; with one of photographs, digits become those.

    Raises:
        ParamsError: There is no such preset, or the file cannot be used.
    """
    given = params.parse(tree)
    if preset == given.preset or not isinstance(tree, Mapping):
        return given
    tree = {**tree, "preset": preset}
    if given.images.source == "digits":
        tree["images"] = {**tree["images"], "source": "auto"}
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
        parser.add_argument(_option(name), type=int, help="default: by preset and prior.source")
    options = parser.parse_args(arguments)
    if not 0 < options.utilisation <= 1:
        parser.error(f"--utilisation {options.utilisation} is a share: above 0, at most 1")
    for name in ("gpus", "bf16_tflops", "fp32_tflops", "memory_gib", *Facts._fields):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            parser.error(f"{_option(name)} {value} must be positive and finite")
    try:
        cfg = load(options.preset, params.read_yaml(params.ROOT / "params.yaml"))
    except ParamsError as error:
        _stop(f"params.yaml cannot be used with --preset {options.preset}:\n{error}")
    given = {name: getattr(options, name) for name in Facts._fields}
    facts = assumed(cfg)._replace(**{name: n for name, n in given.items() if n is not None})
    if not facts.feature_vectors or not facts.feature_dim:
        parser.error(
            f"with prior.source {cfg.prior.source} give --feature-vectors and --feature-dim"
        )
    hardware = Hardware(
        options.bf16_tflops * 1e12,
        options.fp32_tflops * 1e12,
        options.memory_gib * GIB,
        options.utilisation,
    )
    try:
        lines = rows(cfg, facts, hardware)
    except (ModuleNotFoundError, ValueError) as error:
        _stop(f"the preset {options.preset} cannot be counted: {error}")
    said = ", ".join(f"{name} {value}" for name, value in facts._asdict().items())
    print(
        f"preset {options.preset}, prior.source {cfg.prior.source}, align.objective {cfg.align.objective}; "
        f"assumed: {said}\n"
        f"{options.gpus} x {options.bf16_tflops:g} TFLOP/s in bf16, {options.fp32_tflops:g} in fp32, "
        f"of which {options.utilisation:.0%} are reached; {options.memory_gib:g} GiB each\n"
    )
    print(table(lines, hardware, options.gpus))
    for line in filter(lambda line: line.parts, lines):
        parts = (f"{name} {flops / 1e9:.4g}" for name, flops in line.parts.items())
        print(f"{line.stage}, GFLOP an item: {', '.join(parts)}")
    game = cfg.scale.train_ae.adversarial
    if game.weight:
        print(
            f"adversarial: from step {game.start_step} on; TFLOP/step is the mean over all steps, kept GiB is with it"
        )
    print(
        "states: on each GPU; kept: the most that is held for a backward pass, over all GPUs; "
        "disk: artifact and checkpoint, of which there are two while one is written.\n"
        "Not counted: reading images, elementwise arithmetic, evaluation, features other than a transformer's."
    )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _stop(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
