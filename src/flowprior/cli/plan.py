"""`flowprior plan`: what a preset would cost, stage by stage, before any data or weights are there."""

from typing import Annotated

import typer

from flowprior.cli.mistakes import unusable
from flowprior.cli.options import positive_number, share, whole_number
from flowprior.config.messages import ParamsError
from flowprior.core.registry import PLUGINS
from flowprior.core.root import find_root
from flowprior.costs.preset import params_to_plan

ASSUMED = "Else assumed, by preset and prior.source."


def plan(
    preset: Annotated[str, typer.Option(metavar="NAME", help="A file of presets/.")] = "imagenet",
    gpus: Annotated[int, whole_number(1, "GPUs that share a batch.")] = 8,
    utilisation: Annotated[float, share("Share of the peak that is reached.")] = 0.4,
    bf16_tflops: Annotated[float, positive_number("Peak of a GPU with bf16 operands.")] = 989.0,
    fp32_tflops: Annotated[float, positive_number("Peak of a GPU with float32 operands.")] = 67.0,
    memory_gib: Annotated[float, positive_number("Memory of a GPU that can be used.")] = 78.0,
    train_images: Annotated[int | None, whole_number(1, ASSUMED)] = None,
    held_out_images: Annotated[int | None, whole_number(1, ASSUMED)] = None,
    num_classes: Annotated[int | None, whole_number(1, ASSUMED)] = None,
    channels: Annotated[int | None, whole_number(1, ASSUMED)] = None,
    feature_vectors: Annotated[int | None, whole_number(1, ASSUMED)] = None,
    feature_dim: Annotated[int | None, whole_number(1, ASSUMED)] = None,
) -> None:
    """Count what a preset would cost, before any data are there.

    Parameters, operations of a step, memory, disk and GPU-hours of each stage; by default on eight H100. Neither data
    nor weights nor a GPU have to be there for it.
    """
    given = {
        "train_images": train_images,
        "held_out_images": held_out_images,
        "num_classes": num_classes,
        "channels": channels,
        "feature_vectors": feature_vectors,
        "feature_dim": feature_dim,
    }
    try:
        cfg = params_to_plan(find_root(), preset)
    except ParamsError as error:
        raise unusable(error, f" with --preset {preset}") from None

    from flowprior.costs.facts import assumed
    from flowprior.costs.hardware import Hardware
    from flowprior.costs.plan import GIB, describe

    try:
        facts = assumed(cfg)._replace(**{name: n for name, n in given.items() if n is not None})
        is_plugin = f"{PLUGINS}." in f"{cfg.prior.source} {cfg.prior.encoder}"
        if not is_plugin and not (facts.feature_vectors and facts.feature_dim):
            source = cfg.prior.source
            raise ValueError(f"with prior.source {source} give --feature-vectors and --feature-dim")
        hardware = Hardware(bf16_tflops * 1e12, fp32_tflops * 1e12, memory_gib * GIB, utilisation)
        typer.echo(describe(cfg, facts, hardware, gpus))
    except (ModuleNotFoundError, ValueError) as error:
        raise ValueError(f"the preset {preset} cannot be counted: {error}") from error
