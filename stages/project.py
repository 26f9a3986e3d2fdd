"""Project the features to the dimension of the latents and give them unit spread.

Reads   data/features/
Writes  data/targets/            shards of float32 [n, d], splits train and validation, and the
projection
        metrics/project.json     distortion of pair distances, std, effective rank
"""

from flowprior.config import params
from flowprior.config.params import Params

params.check(__name__)

import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from flowprior.core import rng
from flowprior.core.io import atomic_dir, provenance, save_tensors, write_json
from flowprior.core.shards import Column, ShardReader, ShardWriter
from flowprior.images.sets import SPLITS
from flowprior.ops.machine import usage
from flowprior.ops.tracking import Tracker
from flowprior.prior.projection import Projection
from flowprior.stats.distances import pair_distortion
from flowprior.stats.moments import Moments

STAGE = "project"
PIECE = 65536
DISTORTION_VECTORS = 5000


def main(cfg: Params, root: Path) -> None:
    """Run the stage in a workspace."""
    started = time.perf_counter()
    config = cfg.tracked(STAGE)
    tracker = Tracker(STAGE, config, params.state_root(root))
    tracker.start()
    features = ShardReader.open(root / "data/features", "features", "the stage `extract_features`")
    train = features.column("train", "vectors")
    moments = Moments(train.shape[1])
    for block in tqdm(train.blocks(), desc=f"{STAGE} moments", disable=None):
        moments.update(torch.from_numpy(block.astype("float32")))
    projection = Projection.fit(moments, cfg.scale.project.dim, cfg.project.operator, cfg.seed)
    projected = Moments(projection.out_dim)
    with atomic_dir(root / "data/targets") as out:
        writer = ShardWriter(out)
        for split in SPLITS:
            column = features.column(split, "vectors")
            for block in tqdm(column.blocks(), desc=f"{STAGE} {split}", disable=None):
                targets = projection(torch.from_numpy(block.astype("float32")))
                if split == "train":
                    projected.update(targets)
                writer.write(split, {"vectors": targets.numpy()})
        save_tensors(out / "projection.safetensors", projection.state_dict())
        write_json(
            out / "projection.json", {"operator": projection.operator, "seed": projection.seed}
        )
        writer.close(
            kind="targets",
            provenance=provenance(config, {"features": features.digest}, "torch", "numpy"),
            source=features.manifest["source"],
            dim=projection.out_dim,
            irreducible_loss=_irreducible_loss(features.manifest["source"]["kind"], projection),
        )
    some = _some_rows(train, cfg.seed)
    distortion = pair_distortion(some, projection(some), rng.generator(cfg.seed, STAGE, "pairs"))
    metrics = {
        "count": projected.count,
        "dim": projection.out_dim,
        "std": projected.std,
        "mean_norm": float(projected.mean.norm()),
        "effective_rank": projected.effective_rank,
        "distortion_std": distortion.std,
        "distortion_p05": distortion.p05,
        "distortion_p95": distortion.p95,
        "num_pairs": distortion.num_pairs,
        "seed": cfg.seed,
        **usage(time.perf_counter() - started),
    }
    write_json(root / f"metrics/{STAGE}.json", metrics)
    tracker.finish(metrics)


def _some_rows(column: Column, seed: int) -> Tensor:
    draw = rng.generator(seed, STAGE, "rows")
    rows = torch.randperm(len(column), generator=draw)[:DISTORTION_VECTORS].sort().values
    return torch.from_numpy(column.gather(rows).astype("float32"))


def _irreducible_loss(kind: str, projection: Projection) -> float | None:
    """Of a perfect flow, known for N(0, I) features: (pi / 2) mean(s), s the targets' d principal stds."""
    if kind != "gaussian":
        return None
    matrix = projection.matrix.double() * projection.scale
    return float(torch.pi / 2 * torch.linalg.svdvals(matrix).sum() / projection.out_dim)


if __name__ == "__main__":
    main(params.load_params(), params.ROOT)
