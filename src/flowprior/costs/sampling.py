"""What it costs to draw a sample from MAR, summed over its schedule: to walk it on the meta device takes long."""

import math
from collections.abc import Mapping

import torch

from flowprior.costs.flops import META, measure
from flowprior.mar.model import MAR
from flowprior.mar.schedules import guided_spans, head_schedule, mask_schedule


def sampling_flops(
    mar: MAR,
    *,
    num_iterations: int,
    head_steps: int,
    final_head_steps: int | None = None,
    solver: str = "euler",
    guided: bool = False,
    guidance_interval: tuple[float | int, float | int] = (0.0, 1.0),
) -> int:
    """Operations of `MAR.sample` for one sequence: every pass of the transformers and every step of the head.

    The operations of a pass are a quadratic in the number of visible tokens, of which three points are counted. The
    head takes every vector by itself, so one evaluation is counted. The embedding of a time, which all sequences of a
    batch share, is left out.

    Args:
        mar: A model on the meta device.
        num_iterations: As in `MAR.sample`, like all that follow.
        head_steps: Steps of the head in the first iteration.
        final_head_steps: Steps of the head in the last iteration; None is as many.
        solver: `heun` evaluates the head twice a step.
        guided: Whether a guidance scale other than 1 is used.
        guidance_interval: Times of the head that are guided.
    """
    n, dim, width = mar.shape.num_tokens, mar.shape.dim, mar.shape.width
    tokens = torch.empty(1, n, dim, device=META)
    labels = torch.zeros(1, dtype=torch.long, device=META)
    orders = torch.zeros(1, n, dtype=torch.long, device=META)

    def transformers(masked: int) -> int:
        def once() -> None:
            mar.conditions(tokens, labels, orders, masked)

        return measure(once).flops

    def head(vectors: int) -> int:
        def once() -> None:
            x, c = (torch.empty(1, vectors, size, device=META) for size in (dim, width))
            mar.head(x, torch.empty(1, 1, device=META), c)

        return measure(once).flops

    with torch.no_grad():
        counted = {masked: transformers(masked) for masked in {0, n // 2, n}}
        per_vector = (head(2) - head(1)) * (2 if solver == "heun" else 1)
    total, masked = 0.0, n
    steps_of = head_schedule(head_steps, final_head_steps, num_iterations)
    for left, steps in zip(mask_schedule(n, num_iterations), steps_of, strict=True):
        spans = guided_spans(steps, guidance_interval) if guided else []
        doubled = sum(span.last - span.first for span in spans if span.guided)
        total += _through(counted, masked) * (2 if doubled else 1)
        total += per_vector * (steps + doubled) * (masked - left)
        masked = left
    return round(total)


def _through(points: Mapping[int, int], x: int) -> float:
    """The value at x of the polynomial through the points (Lagrange's formula)."""
    return sum(
        y * math.prod((x - other) / (at - other) for other in points if other != at)
        for at, y in points.items()
    )
