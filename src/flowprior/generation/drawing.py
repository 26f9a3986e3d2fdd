"""Samples in batches, drawn by all ranks in turn."""

from collections.abc import Iterator

from accelerate import Accelerator
from jaxtyping import Int, UInt8
from torch import Tensor
from tqdm import tqdm

from flowprior.core import rng
from flowprior.core.device import in_turn
from flowprior.generation.config import Guidance, SampleEval
from flowprior.generation.sampler import Sampler

TAG = "sample_eval"
"""Of the random draws, which come from (seed, tag, number of the batch)."""


def draw_samples(
    accelerator: Accelerator,
    sampler: Sampler,
    labels: Int[Tensor, " n"],
    settings: SampleEval,
    guidance: Guidance,
    seed: int,
    scale: float,
) -> Iterator[UInt8[Tensor, "b c h w"]]:
    """Images in bytes, a batch at a time; equal seeds draw equal noise at every guidance scale.

    The ranks draw batches in turn, the first has them.

    Args:
        accelerator: Ranks.
        sampler: Draws.
        labels: Classes, one for each image.
        settings: The section `sample_eval`.
        guidance: The section `guidance`, but for the scale.
        seed: Of the run.
        scale: Of the guidance; 1 is none.
    """
    parts = labels.split(settings.batch_images)

    def work(index: int) -> Tensor:
        return sampler(
            parts[index],
            rng.generator(seed, TAG, index),
            num_iterations=settings.num_iterations,
            head_steps=settings.head_steps,
            final_head_steps=settings.final_head_steps,
            solver=settings.solver,
            churn=settings.churn,
            guidance_scale=scale,
            guidance_schedule=guidance.schedule,
            guidance_interval=(guidance.low, guidance.high),
            temperature=settings.temperature,
        ).cpu()

    pieces = in_turn(accelerator, len(parts), work)
    hidden = None if accelerator.is_main_process else True
    yield from tqdm(pieces, desc=f"{TAG} {scale:g}", total=len(parts), disable=hidden)
