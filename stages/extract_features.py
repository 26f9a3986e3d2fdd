"""Extract target features: what the latents will be pulled towards.

Reads   images (training and validation split) or a table of embeddings
Writes  data/features/                   shards of float16 [n, D], splits train and validation
        metrics/extract_features.json    count, dim, mean, std, seconds
"""

from flowprior.config import params
from flowprior.config.params import Params

params.check(__name__)

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from flowprior.core.device import start_accelerator
from flowprior.core.io import atomic_dir, digest, provenance, write_json
from flowprior.core.shards import ShardWriter, to_float16
from flowprior.encoders.networks import autoencoder_latents, patch_tokens
from flowprior.encoders.shipped import check_split, load_digits_network
from flowprior.features.of_images import codebook, image_features, pixel_patches, shuffled_pieces
from flowprior.features.tables import (
    HELD_OUT,
    Table,
    codebook_table,
    embedding_table,
    file_table,
    gaussian_table,
)
from flowprior.images.sets import SPLITS, ImageSet, Split, open_images
from flowprior.ops.machine import usage
from flowprior.ops.tracking import Tracker
from flowprior.stats.moments import Moments

STAGE = "extract_features"
CODEBOOK_CODES, CODEBOOK_DIM = 512, 8
GAUSSIAN_DIM = 64
MIN_VECTORS = 200
PAPERS_TEXT_MODEL = "Qwen/Qwen2.5-0.5B"


class Source(NamedTuple):
    """Where vectors come from.

    Attributes:
        pieces: Of a split.
        digest: Of what is read.
        facts: What to record.
        images: That they are made of; none where they are a table.
    """

    pieces: Callable[[Split], Iterator[Tensor]]
    digest: str
    facts: dict[str, str]
    images: dict[Split, ImageSet]


def open_source(cfg: Params, device: torch.device) -> Source:
    """The source that `prior.source` names.

    Raises:
        ValueError: What it names cannot be read, or the images cannot.
    """
    # Also where no feature is made of them: that they are not there should be told now, not after the flow's training.
    images = {split: open_images(split=split, **cfg.image_source) for split in SPLITS}
    if cfg.on_digits:
        check_split(images["train"].digest)
    prior, scale = cfg.prior, cfg.scale.extract_features
    if prior.source == "textual":
        return _table_source(
            embedding_table(prior.path, prior.model or _text_model(cfg), prior.revision), cfg
        )
    if prior.source == "file":
        return _table_source(file_table(prior.path or ""), cfg)
    if prior.source == "gaussian":
        return _table_source(gaussian_table(scale.max_vectors, GAUSSIAN_DIM, cfg.seed), cfg)
    if prior.source == "discrete" and not cfg.on_digits:
        return _table_source(codebook_table(prior.path or ""), cfg)

    def tokens(split: Split, extract: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        share = 1 if split == "train" else HELD_OUT
        return image_features(
            images[split],
            extract,
            batch_images=scale.batch_images,
            max_vectors=scale.max_vectors // share,
            max_images=scale.max_images and max(1, scale.max_images // share),
            seed=cfg.seed,
        )

    if prior.source == "discrete":
        patches = torch.cat(list(tokens("train", pixel_patches)))
        codes = codebook(patches, CODEBOOK_CODES, CODEBOOK_DIM, cfg.seed)
        facts = {"codebook": f"k-means of 4 x 4 patches in {CODEBOOK_DIM} principal components"}
        return _table_source(Table(*codes.shape, lambda a, b: codes[a:b], facts), cfg)
    extract, facts = open_extractor(cfg, images["train"].digest, device)

    def pieces(split: Split) -> Iterator[Tensor]:
        found = tokens(split, extract)
        return shuffled_pieces(found, cfg.seed) if prior.source == "shuffled" else found

    digests = [images[split].digest for split in SPLITS]
    listing = {f"{split}_images": images[split].digest for split in SPLITS}
    return Source(pieces, digest([*digests, facts]), {**facts, **listing}, images)


def open_extractor(
    cfg: Params, train_digest: str, device: torch.device
) -> tuple[Callable[[Tensor], Tensor], dict[str, str]]:
    """What makes tokens [b, n, D] of images, and the facts of it."""
    prior = cfg.prior
    if cfg.on_digits:
        if prior.source == "low_level":
            return pixel_patches, {"patches": "4 x 4, stride 2"}
        network = load_digits_network("semantic", train_digest=train_digest)
        return network.features, {
            "network": "DigitsPatchNet",
            "trained_on": "digits, training split",
        }
    name = prior.path or prior.model
    if prior.source == "low_level":
        encoder = autoencoder_latents(name, revision=prior.revision, device=device)
    else:
        size = cfg.scale.images.size
        encoder = patch_tokens(name, size=size, revision=prior.revision, device=device)
    return encoder, encoder.facts


def _text_model(cfg: Params) -> str | None:
    """Of the paper where images are not digits; these have a small one that is installed."""
    return None if cfg.on_digits or cfg.prior.path is not None else PAPERS_TEXT_MODEL


def main(cfg: Params, root: Path) -> None:
    """Run the stage in a workspace."""
    started = time.perf_counter()
    config = cfg.tracked(STAGE)
    tracker = Tracker(STAGE, config, params.state_root(root))
    tracker.start()
    source = open_source(cfg, start_accelerator().device)
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
        "num_corrupt_images": sum(len(images.corrupt) for images in source.images.values()),
        "seed": cfg.seed,
        **usage(time.perf_counter() - started),
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
    found = digest([table.facts, table.rows, seed])
    return Source(lambda split: table.pieces(split, seed), found, table.facts, {})


if __name__ == "__main__":
    main(params.load_params(), params.ROOT)
