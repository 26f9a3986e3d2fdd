"""Extract target features: what the latents will be pulled towards.

Reads   images (training and validation split) or a table of embeddings
Writes  data/features/                   shards of float16 [n, D], splits train and validation
        metrics/extract_features.json    count, dim, mean, std
"""

from flowprior.config import launch

launch.check_params(__name__)

import time
from pathlib import Path

from tqdm import tqdm

from flowprior.config.presets import load_params
from flowprior.config.schema import Params
from flowprior.core.artifacts import atomic_dir, provenance
from flowprior.core.device import start_accelerator
from flowprior.core.root import find_root, state_root
from flowprior.core.shard_writer import ShardWriter, to_float16
from flowprior.encoders.shipped import check_split
from flowprior.features.source import Request, open_source
from flowprior.images.opening import open_images
from flowprior.images.sets import SPLITS
from flowprior.ops.outcome import record
from flowprior.ops.tracking import Tracker
from flowprior.stats.moments import Moments

STAGE = "extract_features"


def main(cfg: Params, root: Path) -> None:
    """Run the stage in a workspace."""
    started = time.perf_counter()
    tracker = Tracker(STAGE, cfg.tracked(STAGE), state_root(root))
    tracker.start()
    # Also where no feature is made of them: that they are not there should be told now, not after the flow's training.
    images = {split: open_images(split=split, **cfg.image_source) for split in SPLITS}
    if cfg.on_digits:
        check_split(images["train"].digest)
    source = open_source(
        Request(
            prior=cfg.prior,
            limits=cfg.extract_features,
            images=images,
            size=cfg.images.size,
            on_digits=cfg.on_digits,
            seed=cfg.seed,
            split_seed=cfg.images.split_seed,
            device=start_accelerator().device,
        )
    )
    moments: Moments | None = None
    with atomic_dir(root / "data/features") as out:
        writer = ShardWriter(out)
        for split in SPLITS:
            for piece in tqdm(source.pieces(split), desc=f"{STAGE} {split}", disable=None):
                if split == "train":
                    moments = moments or Moments(piece.shape[-1])
                    moments.update(piece)
                writer.write(split, {"vectors": to_float16(piece)})
        if moments is None or moments.count < 2:
            raise ValueError(f"prior.source {cfg.prior.source} gave fewer than two vectors")
        writer.close(
            kind="features",
            provenance=provenance({"source": source.digest}, "torch", "numpy"),
            source={"kind": cfg.prior.source, **source.facts},
            dim=moments.dim,
        )
    facts = {
        "count": moments.count,
        "dim": moments.dim,
        "mean": float(moments.mean.mean()),
        "std": moments.std,
        "effective_rank": moments.effective_rank,
        "num_corrupt_images": sum(len(of_split.corrupt) for of_split in source.images.values()),
        "seed": cfg.seed,
    }
    record(root, STAGE, facts, tracker, time.perf_counter() - started)


if __name__ == "__main__":
    main(load_params(), find_root())
