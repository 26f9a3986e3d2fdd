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

import torch
from torch import Tensor
from tqdm import tqdm

from flowprior import rng
from flowprior.data.features import codebook, image_features, pixel_patches, shuffle_columns
from flowprior.data.images import SPLITS, Split, open_images
from flowprior.data.pretrained import check_split, load_digits_network
from flowprior.data.shards import ShardWriter, to_float16
from flowprior.data.tables import Table, embedding_table, file_table, held_out_rows
from flowprior.io import atomic_dir, digest, provenance, write_json
from flowprior.metrics.moments import Moments
from flowprior.training.tracking import Tracker

STAGE = "extract_features"
CODEBOOK_CODES, CODEBOOK_DIM = 512, 8
GAUSSIAN_DIM = 64
MIN_VECTORS = 200


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
    if cfg.images.source == "digits":
        check_split(open_images(split="train", **cfg.image_source).digest)
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
                writer.write(split, {"vectors": to_float16(piece)})
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
    if table.rows < MIN_VECTORS:
        raise ValueError(
            f"prior.source {cfg.prior.source}: {table.rows} rows are too few to train on and to hold out a tenth; "
            f"bring at least {MIN_VECTORS}"
        )
    seed = cfg.images.split_seed
    found = digest([table.facts, table.rows, held_out_rows(table.rows, seed).tolist()])
    return Source(lambda split: table.pieces(split, seed), found, table.facts)


if __name__ == "__main__":
    main(params.load_params(), params.ROOT)
