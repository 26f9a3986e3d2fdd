"""How held-out latents compare with held-out targets, and what a linear classifier reads from them."""

import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flowprior.check.latents import SAMPLES, check_latents
from flowprior.check.yardstick import enough
from flowprior.core import rng
from flowprior.core.shards import Column, ShardReader
from flowprior.evaluation.probe import linear_probe_accuracy
from flowprior.images.sets import SPLITS
from flowprior.prior.flow_prior import FlowPrior
from flowprior.stats.match import match_report

NEIGHBOURS = 5
"""k of the coverage metrics."""
AMBIGUOUS = ("precision", "recall", "recall_control", "density")
"""Of latents against targets; sample_eval has keys of these names, of samples against images."""
MATCH_VECTORS = 5000
NLL_VECTORS = 1000
PROBE_IMAGES = 20_000
"""Of each split; all of ImageNet's latents would take gigabytes."""
TAG = "encode_latents"
"""Of the random draws, which come from (seed, tag, purpose)."""


def check_held_out(targets: ShardReader) -> None:
    """Whether there are enough held-out targets to compare with.

    Raises:
        ValueError: There are not.
    """
    held_out = len(targets.column("validation", "vectors"))
    if held_out <= NEIGHBOURS:
        raise ValueError(
            f"data/targets holds out {held_out} vectors, neighbours with k = {NEIGHBOURS} need more; "
            "bring more features or raise max_vectors, and run `dvc repro extract_features`"
        )


def match_metrics(
    latents: ShardReader, targets: ShardReader, prior: FlowPrior, seed: int
) -> dict[str, float | int | str | None]:
    """How held-out latents compare with held-out targets, and the verdict of `FlowPrior.check`, aloud if not good.

    Training targets are the control: what latents that match perfectly would give. The verdict compares with the
    training targets that the prior keeps; it is None where there are too few.
    """
    tokens = latents.column("validation", "latents")
    per_image = tokens.shape[2]
    mine = _some(tokens, -(-MATCH_VECTORS // per_image), seed)[:, 0]
    mine = mine.reshape(-1, mine.shape[-1]).astype(np.float32)
    held_out = _some(targets.column("validation", "vectors"), MATCH_VECTORS, seed)
    control = targets.column("train", "vectors").sample(
        MATCH_VECTORS, rng.generator(seed, TAG, "control")
    )
    report = match_report(mine, held_out, control.numpy(), seed=seed, k=NEIGHBOURS)
    device = prior.device
    nll, target_nll = (
        float(prior.nll(torch.from_numpy(part).to(device)).double().mean())
        for part in (mine[:NLL_VECTORS], held_out[:NLL_VECTORS])
    )
    return {
        **{f"latent_{key}" if key in AMBIGUOUS else key: value for key, value in report.items()},
        "nll_nats": nll,
        "nll_targets_nats": target_nll,
        "nll_gap_nats": nll - target_nll,
        "verdict": _verdict(prior, mine, seed),
    }


def probe_accuracy(latents: ShardReader) -> float | None:
    """Linear probe on the latents of unflipped images, at most `PROBE_IMAGES`; None where there is one class."""
    data = []
    for split in SPLITS:
        column = latents.column(split, "latents")
        few = len(column) <= PROBE_IMAGES
        rows = np.arange(len(column)) if few else _rows(column, PROBE_IMAGES, 0)
        vectors = column.gather(rows)[:, 0]
        data += [vectors.reshape(len(vectors), -1), latents.column(split, "labels").gather(rows)]
    return linear_probe_accuracy(*data)


def _verdict(prior: FlowPrior, latents: NDArray[np.float32], seed: int) -> str | None:
    if not enough(SAMPLES if prior.targets is None else len(prior.targets), len(latents)):
        return None
    check = check_latents(prior, torch.from_numpy(latents), seed=seed)
    for finding in () if check.good else check.findings:
        print(f"{TAG}: WARNING the latents are {check.verdict}: {finding}", file=sys.stderr)
    return check.verdict


def _some(column: Column, count: int, seed: int) -> NDArray[Any]:
    """At most so many rows, at random and in random order."""
    return column.gather(_rows(column, count, seed))


def _rows(column: Column, count: int, seed: int) -> NDArray[Any]:
    order = torch.randperm(len(column), generator=rng.generator(seed, TAG, "some"))
    return order[:count].numpy()
