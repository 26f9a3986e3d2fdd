"""The alignment of held-out latents, looked at over training (Fig. 4, arXiv:2506.05240)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from flowprior.core import rng
from flowprior.core.shards import ShardReader
from flowprior.images.sets import ImageSet, batches
from flowprior.prior.flow_prior import FlowPrior
from flowprior.stats.correlation import correlations
from flowprior.stats.neighbours import NeighbourIndex

NEIGHBOURS = (1, 5, 10)
"""k of the distances to the k-th nearest training target."""
DRAWS = 8
BATCH = 512
TAG = "train_ae"
"""Of the random draws, which come from (seed, tag, purpose)."""


class AlignmentWatch:
    """Alignment loss and mean log r_k of held-out latents, with the same images, noise and times at every look.

    Args:
        prior: The flow prior.
        targets: Shards with the split `train` of vectors [N, d].
        images: Held-out images.
        num_images: At most so many of them are looked at, at least one.
        seed: Of the run.

    Attributes:
        rows: Which images, ascending.

    Raises:
        ValueError: There are fewer targets than neighbours.
    """

    def __init__(
        self, prior: FlowPrior, targets: ShardReader, images: ImageSet, num_images: int, seed: int
    ) -> None:
        self._prior = prior
        vectors = targets.column("train", "vectors")
        if len(vectors) < max(NEIGHBOURS):
            raise ValueError(
                f"data/targets has {len(vectors)} training vectors, log r_k needs {max(NEIGHBOURS)}; "
                "bring more features or raise max_vectors, and run `dvc repro extract_features`"
            )
        self._index = NeighbourIndex(vectors.read())
        self._images = images
        self._seed = seed
        order = torch.randperm(len(images), generator=rng.generator(seed, TAG, "rows"))
        self.rows = order[: max(1, num_images)].sort().values

    @torch.no_grad()
    def __call__(self, autoencoder: Any, device: torch.device) -> dict[str, float]:
        """One row of the curve; the autoencoder is on the device and is left in eval mode."""
        autoencoder.eval()
        pieces = (self.rows[list(piece)] for piece in batches(len(self.rows), BATCH))
        latents = torch.cat(
            [
                autoencoder.encode(self._images.images(rows).to(device)).mean.flatten(0, 1)
                for rows in pieces
            ]
        ).float()
        draw = rng.generator(self._seed, TAG, "watch")
        loss = self._prior.alignment_loss(latents, draw, DRAWS)
        distances = self._index.mean_log_distance(latents.cpu().numpy(), NEIGHBOURS)
        return {"alignment_loss": float(loss)} | {
            f"mean_log_r{k}": distance for k, distance in distances.items()
        }


def training_metrics(
    curves: Mapping[str, Sequence[Mapping[str, float | int]]], seed: int
) -> dict[str, float | int | None]:
    """Last losses, and how the alignment loss follows the nearest-neighbour proxy over training.

    Args:
        curves: `train` with loss, reconstruction and alignment; `alignment` with what a watch gave.
        seed: Of the bootstrap.
    """
    last = curves["train"][-1]
    metrics: dict[str, float | int | None] = {
        name: last[name] for name in ("loss", "reconstruction", "alignment")
    }
    looks = curves.get("alignment", [])
    metrics["num_looks"] = len(looks)
    losses = [row["alignment_loss"] for row in looks]
    metrics["held_out_alignment_loss"] = losses[-1] if losses else None
    for k in NEIGHBOURS:
        distances = [row[f"mean_log_r{k}"] for row in looks]
        metrics[f"mean_log_r{k}"] = distances[-1] if distances else None
        agreement = correlations(losses, distances, seed)
        for name in ("pearson", "spearman"):
            value = agreement.get(name)
            metrics[f"{name}_r{k}"] = value.value if value else None
            metrics[f"{name}_r{k}_low"] = value.low if value else None
            metrics[f"{name}_r{k}_high"] = value.high if value else None
    return metrics


def caption(metrics: Mapping[str, float | int | None]) -> str:
    """Rank correlation of alignment loss and mean log r_5 in words; empty where it is not known."""
    k = NEIGHBOURS[1]
    value, low, high = (metrics[f"spearman_r{k}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return ""
    return f"Spearman {value:.3f}, 95% CI [{low:.3f}, {high:.3f}]"
