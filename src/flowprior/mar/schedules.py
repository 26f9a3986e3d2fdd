"""How MAR reveals tokens while it samples: how many at a time, in how many steps of the head, which of them guided."""

import math
from itertools import groupby
from typing import NamedTuple


def mask_schedule(num_tokens: int, num_iterations: int) -> list[int]:
    """Masked tokens left after each iteration, by the cosine schedule; each reveals one or more, the last all.

    Raises:
        ValueError: More iterations than tokens, or none.
    """
    if not 1 <= num_iterations <= num_tokens:
        raise ValueError(
            f"num_iterations must lie between 1 and the {num_tokens} tokens, found {num_iterations}"
        )
    left, now = [], num_tokens
    for k in range(1, num_iterations + 1):
        wanted = math.floor(num_tokens * math.cos(math.pi / 2 * k / num_iterations))
        now = max(num_iterations - k, min(now - 1, wanted))
        left.append(now)
    return left


def head_schedule(first: int, final: int | None, num_iterations: int) -> list[int]:
    """Steps of the head in each iteration: from `first` to `final` in a straight line, rounded.

    Late tokens are nearly determined by those before them and need fewer steps; diffusion step
    annealing, arXiv:2505.20297.

    Args:
        first: In the first iteration (in the only one, where there is one).
        final: In the last; None for `first` throughout.
        num_iterations: Iterations.

    Raises:
        ValueError: Steps that are not positive, or that grow.
    """
    final = first if final is None else final
    if not 1 <= final <= first:
        raise ValueError(
            f"final_head_steps must lie between 1 and head_steps ({first}), found {final}: "
            "late iterations need fewer steps, not more"
        )
    last = max(1, num_iterations - 1)
    return [round(first + (final - first) * k / last) for k in range(num_iterations)]


class Span(NamedTuple):
    """Steps first .. last - 1 of the head, all guided or none."""

    first: int
    last: int
    guided: bool


def guided_spans(num_steps: int, interval: tuple[float | int, float | int]) -> list[Span]:
    """The steps of the head in runs; those are guided whose start k / num_steps lies in [low, high).

    Raises:
        ValueError: Not 0 <= low < high <= 1.
    """
    low, high = interval
    if not 0 <= low < high <= 1:
        raise ValueError(
            f"guidance_interval must be two times with 0 <= low < high <= 1, found {low} and {high}; "
            "for no guidance set guidance_scale to 1"
        )
    spans = []
    for guided, run in groupby(range(num_steps), lambda k: low <= k / num_steps < high):
        steps = list(run)
        spans.append(Span(steps[0], steps[-1] + 1, guided))
    return spans
