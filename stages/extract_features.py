"""Extract target features: what the latents will be pulled towards.

Reads   images (training and validation split) or a table of embeddings
Writes  data/features/                   shards of float16 [n, D], splits train and validation
        metrics/extract_features.json    count, dim, mean, std, seconds
"""

import params
from params import Params

params.check(__name__)

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from flowprior import rng
from flowprior.data.features import codebook, image_features, pixel_patches, shuffle_columns
from flowprior.data.images import SPLITS, Split, open_images
from flowprior.data.pretrained import load_digits_network
from flowprior.data.shards import ShardWriter
from flowprior.data.tables import Table, embedding_table, file_table, held_out_rows
from flowprior.io import atomic_dir, digest, provenance, write_json
from flowprior.metrics.moments import Moments
from flowprior.training.tracking import Tracker

STAGE = "extract_features"
CODEBOOK_CODES, CODEBOOK_DIM = 512, 8
GAUSSIAN_DIM = 64
FLOAT16_MAX = 65504.0


class Source(NamedTuple):
    """Where vectors come from: pieces of a split, the digest of what is read, and what to record."""

    pieces: Callable[[Split], Iterator[Tensor]]
    digest: str
    facts: dict[str, str]


def open_source(cfg: Params) -> Source:
    """The source that `prior.source` names.

    Raises:
        ValueError: It does not exist at this scale, or its file cannot be read.
    """
    kind, scale = cfg.prior.source, cfg.scale.extract_features
    if kind in ("textual", "file"):
        table = (
            embedding_table(cfg.prior.path)
            if kind == "textual"
            else file_table(cfg.prior.path or "")
        )
        return _table_source(table, cfg)
    if kind == "gaussian":
        vectors = torch.randn(
            scale.max_vectors, GAUSSIAN_DIM, generator=rng.generator(cfg.seed, kind)
        )
        facts = {"distribution": f"N(0, I) in {GAUSSIAN_DIM} dims"}
        return _table_source(Table(*vectors.shape, lambda a, b: vectors[a:b], facts), cfg)
    if cfg.images.source != "digits":
        raise ValueError(
            f"prior.source {kind} is built for images.source digits only; use file or textual"
        )
    images = {split: open_images(split=split, **cfg.image_source) for split in SPLITS}
    found = digest([images[split].digest for split in SPLITS])

    def tokens(split: Split, extract: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        return image_features(
            images[split],
            extract,
            batch_images=scale.batch_images,
            max_vectors=scale.max_vectors,
            seed=cfg.seed,
        )

    if kind == "low_level":
        return Source(
            lambda split: tokens(split, pixel_patches), found, {"patches": "4 x 4, stride 2"}
        )
    if kind == "discrete":
        patches = torch.cat(list(tokens("train", pixel_patches)))
        codes = codebook(patches, CODEBOOK_CODES, CODEBOOK_DIM, cfg.seed)
        facts = {"codebook": f"k-means of 4 x 4 patches in {CODEBOOK_DIM} principal components"}
        return _table_source(Table(*codes.shape, lambda a, b: codes[a:b], facts), cfg)
    network = load_digits_network("semantic", train_digest=images["train"].digest)
    facts = {"network": "DigitsPatchNet", "trained_on": "digits, training split"}
    if kind == "semantic":
        return Source(lambda split: tokens(split, network.features), found, facts)

    def shuffled(split: Split) -> Iterator[Tensor]:
        yield shuffle_columns(torch.cat(list(tokens(split, network.features))), cfg.seed)

    return Source(shuffled, found, facts)


def main(cfg: Params, root: Path) -> None:
    """Run the stage in a workspace."""
    started = time.perf_counter()
    config = cfg.tracked(STAGE)
    tracker = Tracker(STAGE, config, params.state_root(root))
    tracker.start()
    source = open_source(cfg)
    moments: Moments | None = None
    with atomic_dir(root / "data/features") as out:
        writer = ShardWriter(out)
        for split in SPLITS:
            for piece in tqdm(source.pieces(split), desc=f"{STAGE} {split}", disable=None):
                if split == "train":
                    moments = moments or Moments(piece.shape[-1])
                    moments.update(piece)
                writer.write(split, {"vectors": _half(piece)})
        if moments is None or moments.count < 2:
            raise ValueError(f"prior.source {cfg.prior.source} gave fewer than two vectors")
        writer.close(
            kind="features",
            provenance=provenance(config, {"source": source.digest}, "torch", "numpy"),
            source={"kind": cfg.prior.source, **source.facts},
            dim=moments.dim,
        )
    metrics = {
        "count": moments.count,
        "dim": moments.dim,
        "mean": float(moments.mean.mean()),
        "std": moments.std,
        "effective_rank": moments.effective_rank,
        "seed": cfg.seed,
        "seconds": time.perf_counter() - started,
    }
    write_json(root / f"metrics/{STAGE}.json", metrics)
    tracker.finish(metrics)


def _table_source(table: Table, cfg: Params) -> Source:
    seed = cfg.images.split_seed
    found = digest([table.facts, table.rows, held_out_rows(table.rows, seed).tolist()])
    return Source(lambda split: table.pieces(split, seed), found, table.facts)


def _half(vectors: Tensor) -> np.ndarray:
    """Float16, or an error where that would lose the number."""
    if not vectors.isfinite().all():
        raise ValueError("the features hold NaN or infinite values; nothing was written")
    if vectors.abs().max() > FLOAT16_MAX:
        raise ValueError(
            f"the features reach {vectors.abs().max():.3g}, which float16 cannot hold; scale them down"
        )
    return vectors.to(torch.float16).numpy()


if __name__ == "__main__":
    main(params.load_params(), params.ROOT)
