"""How good a flow prior is, on targets that it never saw."""

import torch

from flowprior.core import rng
from flowprior.core.shards import ShardReader
from flowprior.flow.losses import grouped_loss
from flowprior.prior.flow_prior import FlowPrior
from flowprior.stats.two_sample import classifier_two_sample

DRAWS = 16
"""Of noise and time for each held-out target."""
TAG = "train_flow"
"""Of the random draws, which come from (seed, tag, purpose)."""


def held_out_metrics(
    prior: FlowPrior, targets: ShardReader, num_vectors: int, seed: int
) -> dict[str, float | int | None]:
    """Flow matching loss, its gap to the irreducible loss where that is known, C2ST of samples, exact NLL.

    Args:
        prior: Where it computes.
        targets: Shards with the split `validation` of vectors [N, d], and `irreducible_loss` in the manifest.
        num_vectors: At most so many of them.
        seed: Of the run.
    """
    column = targets.column("validation", "vectors")
    order = torch.randperm(len(column), generator=rng.generator(seed, TAG, "eval"))
    rows = order[:num_vectors].sort().values
    held_out = torch.from_numpy(column.gather(rows.numpy())).to(prior.device)
    with torch.no_grad():
        draw = rng.generator(seed, TAG, "eval-loss")
        tiled = held_out.repeat(DRAWS, 1)
        loss = float(grouped_loss(prior.velocity, tiled, prior.time_groups, draw).double().mean())
    floor = targets.manifest["irreducible_loss"]
    samples = prior.sample(len(held_out), rng.generator(seed, TAG, "samples"))
    return {
        "held_out_loss": loss,
        "irreducible_gap": None if floor is None else loss - floor,
        "c2st_accuracy": classifier_two_sample(samples.cpu().numpy(), held_out.cpu().numpy(), seed),
        "held_out_nll_nats": float(prior.nll(held_out).double().mean()),
        "num_held_out": len(held_out),
    }
