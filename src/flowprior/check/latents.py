"""The check of anyone's latents against what a prior was fitted to."""

from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from flowprior.check.result import LatentCheck, Picture
from flowprior.check.verdict import compare
from flowprior.check.yardstick import Measure, Yardstick, sizes
from flowprior.core import rng
from flowprior.prior.flow_prior import FlowPrior
from flowprior.prior.layout import as_latents, channels_last

SAMPLES = 20_000
"""Drawn from the flow of a prior that keeps no targets, in their place."""
NLL_VECTORS = 500
"""For the mean negative log-density, at most."""
EXACT_DIM = 8
"""Dims up to which the divergence is exact; above, the probes' noise is in the interval."""
DRAWS = 4
MOST_KNOWN = 2
"""Sizes and seeds for which the targets' own figures are kept."""
MOST_LATENTS = 20_000
"""That are looked at, at most, drawn at random: more tell nothing new."""


class Known(NamedTuple):
    """What a prior's targets were found to be, for sets of some size; holds them, so that their `id` stays theirs."""

    yardstick: Yardstick
    nll: ndarray
    losses: list[float]
    source: str
    targets: Tensor | None


_KNOWN: "WeakKeyDictionary[FlowPrior, dict[tuple[int, ...], Known]]" = WeakKeyDictionary()


def check_latents(
    prior: FlowPrior,
    latents: Tensor | ndarray,
    *,
    channel_dim: int | None = None,
    targets: Tensor | None = None,
    seed: int = 0,
) -> LatentCheck:
    """What `FlowPrior.check` gives; see there.

    What is known of the targets is kept as long as the prior is, so that a second check is quicker.
    """
    device = prior.device.type
    with torch.no_grad(), torch.autocast(device, enabled=False), rng.plain_defaults():
        return _check(prior, as_latents(latents).detach(), channel_dim, targets, seed)


def _check(
    prior: FlowPrior,
    latents: Tensor,
    channel_dim: int | None,
    targets: Tensor | None,
    seed: int,
) -> LatentCheck:
    last = channels_last(latents, prior.dim, channel_dim)
    vectors = some_rows(last.reshape(-1, prior.dim), MOST_LATENTS, seed).float().cpu()
    if not vectors.isfinite().all():
        bad = int((~vectors.isfinite()).any(1).sum())
        raise ValueError(f"{bad} of {len(vectors)} latents hold NaN or infinite values")
    known = _known(prior, targets, len(vectors), seed)
    yardstick = known.yardstick
    found = vectors.double().numpy()
    numbers = {
        "num_latents": last.numel() // prior.dim,
        "num_compared": yardstick.size,
        "num_targets": len(yardstick.targets),
    }
    some = yardstick.cut(found)
    picture = Picture.of(some, yardstick.targets)
    verdict, measures = compare(found, yardstick)
    cut = torch.from_numpy(some).float()
    nll = _nll(prior, cut, seed)
    sd = float(np.sqrt(nll.var(ddof=1) / len(nll) + known.nll.var(ddof=1) / len(known.nll)))
    measures["nll_gap_nats"] = Measure(float(nll.mean() - known.nll.mean()), 0.0, sd)
    measures["alignment_loss"] = yardstick.measure_of(_loss(prior, cut, seed), known.losses)
    return LatentCheck(verdict, measures, picture, known.source, **numbers)


def some_rows(vectors: Tensor, most: int, seed: int) -> Tensor:
    """At most so many rows, at random."""
    if len(vectors) <= most:
        return vectors
    rows = torch.randperm(len(vectors), generator=rng.generator(seed, "check", "rows"))[:most]
    return vectors[rows.to(vectors.device)]


def _known(prior: FlowPrior, targets: Tensor | None, num_latents: int, seed: int) -> Known:
    given = prior.targets if targets is None else targets
    count = SAMPLES if given is None else len(given)
    size, _ = sizes(count, num_latents, prior.dim)
    key = (size, seed, id(given), _version(prior))
    kept = _KNOWN.setdefault(prior, {})
    if targets is not None or key not in kept:
        known = _measure_targets(prior, targets, num_latents, seed)
        if targets is not None:
            return known
        if len(kept) >= MOST_KNOWN:
            kept.clear()
        kept[key] = known
    return kept[key]


def _version(prior: FlowPrior) -> int:
    """Another number whenever weights or kept targets were written to in place."""
    tensors = [*prior.velocity.parameters(), *prior.velocity.buffers()]
    tensors += [] if prior.targets is None else [prior.targets]
    return sum(0 if tensor.is_inference() else tensor._version for tensor in tensors)


def _measure_targets(
    prior: FlowPrior, targets: Tensor | None, num_latents: int, seed: int
) -> Known:
    if targets is not None:
        source = "the targets that were given"
        if targets.ndim != 2 or targets.shape[1] != prior.dim:
            raise ValueError(f"targets must be [m, {prior.dim}], found {list(targets.shape)}")
    elif prior.targets is not None:
        source, targets = "targets that the prior keeps", prior.targets
    else:
        source = "samples of the prior's flow, since it keeps no targets"
        targets = prior.sample(SAMPLES, rng.generator(seed, "check", "samples"))
    yardstick = Yardstick(targets.detach().cpu().double().numpy(), num_latents, seed)
    controls = [torch.from_numpy(control).float() for control in yardstick.controls]
    losses = [_loss(prior, control, seed) for control in controls]
    return Known(yardstick, _nll(prior, controls[0], seed), losses, source, prior.targets)


def _nll(prior: FlowPrior, vectors: Tensor, seed: int) -> ndarray:
    draw = rng.generator(seed, "check", "nll")
    some = vectors[:NLL_VECTORS].to(prior.device)
    return prior.nll(some, draw, exact_max_dim=EXACT_DIM).cpu().double().numpy()


def _loss(prior: FlowPrior, vectors: Tensor, seed: int) -> float:
    draw = rng.generator(seed, "check", "loss")
    return float(prior.alignment_loss(vectors.to(prior.device), draw, DRAWS, channel_dim=-1))
