"""Project the features to the dimension of the latents and give them unit spread (§4.1, arXiv:2506.05240).

Reads   data/features/
Writes  data/targets/            shards of float32 [n, d], splits train and validation, and the projection
        metrics/project.json     distortion of pair distances, std, effective rank
"""

from flowprior.config import launch

launch.check_params(__name__)

import time
from pathlib import Path

import torch
from tqdm import tqdm

from flowprior.config.presets import load_params
from flowprior.config.schema import Params
from flowprior.core import rng
from flowprior.core.artifacts import atomic_dir, provenance
from flowprior.core.root import find_root, state_root
from flowprior.core.shard_writer import ShardWriter
from flowprior.core.shards import ShardReader
from flowprior.images.sets import SPLITS
from flowprior.ops.outcome import record
from flowprior.ops.tracking import Tracker
from flowprior.prior.projection import Projection
from flowprior.stats.distances import pair_distortion
from flowprior.stats.moments import Moments

STAGE = "project"
DISTORTION_VECTORS = 5000


def main(cfg: Params, root: Path) -> None:
    """Run the stage in a workspace."""
    started = time.perf_counter()
    tracker = Tracker(STAGE, cfg.tracked(STAGE), state_root(root))
    tracker.start()
    features = ShardReader.open(root / "data/features", "features", "the stage `extract_features`")
    source = features.manifest["source"]
    train = features.column("train", "vectors")
    moments = Moments(train.shape[1])
    for block in tqdm(train.blocks(), desc=f"{STAGE} moments", disable=None):
        moments.update(torch.from_numpy(block.astype("float32")))
    projection = Projection.fit(moments, cfg.project.dim, cfg.project.operator, cfg.seed)
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
        projection.save(out)
        writer.close(
            kind="targets",
            provenance=provenance({"features": features.digest}, "torch", "numpy"),
            source=source,
            dim=projection.out_dim,
            irreducible_loss=(
                projection.irreducible_loss() if source["kind"] == "gaussian" else None
            ),
        )
    draw = rng.generator(cfg.seed, STAGE, "rows")
    rows = torch.randperm(len(train), generator=draw)[:DISTORTION_VECTORS].sort().values
    some = torch.from_numpy(train.gather(rows).astype("float32"))
    distortion = pair_distortion(some, projection(some), rng.generator(cfg.seed, STAGE, "pairs"))
    facts = {
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
    }
    record(root, STAGE, facts, tracker, time.perf_counter() - started)


if __name__ == "__main__":
    main(load_params(), find_root())
