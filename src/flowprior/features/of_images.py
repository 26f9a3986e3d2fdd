"""Target features, streamed; patches, a codebook and a control for each kind of prior; vectors are float32 [n, D]."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowprior.core import rng
from flowprior.images.sets import ImageSet, batches

Extractor = Callable[[Tensor], Tensor]
"""Images [b, c, h, w] to features [b, tokens, D]."""


def pixel_patches(
    images: Float[Tensor, "b c H W"], size: int = 4, stride: int = 2
) -> Float[Tensor, "b p f"]:
    """Raw square patches of pixels, overlapping where `stride` < `size`."""
    return torch.nn.functional.unfold(images, size, stride=stride).transpose(1, 2)


def image_features(
    images: ImageSet,
    extract: Extractor,
    *,
    batch_images: int,
    max_vectors: int,
    seed: int,
    max_images: int | None = None,
) -> Iterator[Float[Tensor, "n D"]]:
    """Features of images, in pieces, float32 on the CPU; at most `max_vectors`, spread evenly.

    No more is held than a batch. All images come in order. Where there are more than `max_vectors`
    or `max_images`, so many are drawn, evenly over the classes and class after class in turn, so that every
    stretch of the features has all of them. Where there would be more vectors, equally many tokens of
    every image are drawn.
    """
    limit = max_vectors if max_images is None else min(max_vectors, max_images)
    rows = _spread(images.labels, min(len(images), limit), seed)
    per_image = max_vectors // len(rows)
    for piece in batches(len(rows), batch_images):
        generator = rng.generator(seed, "tokens", piece.start)
        yield _some_tokens(
            extract, images.images(rows[piece.start : piece.stop]), per_image, generator
        )


@torch.no_grad()
def _some_tokens(
    extract: Extractor, images: Tensor, per_image: int, generator: torch.Generator
) -> Tensor:
    tokens = extract(images)
    if tokens.shape[1] > per_image:
        order = torch.rand(tokens.shape[:2], generator=generator).argsort(-1)[:, :per_image]
        order = order.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        tokens = tokens.gather(1, order.to(tokens.device))
    return tokens.flatten(0, 1).float().cpu()


def _spread(labels: Int[Tensor, " n"], count: int, seed: int) -> Int[Tensor, " m"]:
    """All rows in order, or so many of them: one of each class in turn, within a class at random."""
    if count == len(labels):
        return torch.arange(count)
    generator = rng.generator(seed, "images")
    shuffled = torch.randperm(len(labels), generator=generator)
    classes, label = labels[shuffled].unique(return_inverse=True)
    turn = torch.randperm(len(classes), generator=generator)[label]  # within a round
    by_class = turn.argsort(stable=True)
    sizes = turn.bincount()
    rounds = torch.empty_like(turn)
    rounds[by_class] = torch.arange(len(turn)) - (sizes.cumsum(0) - sizes)[turn[by_class]]
    return shuffled[(rounds * len(classes) + turn).argsort()[:count]]


def codebook(
    patches: Float[Tensor, "n f"], num_codes: int, dim: int, seed: int
) -> Float[Tensor, "c d"]:
    """A k-means codebook of patches reduced by PCA to `dim`; the stand-in for a VQ codebook.

    Raises:
        ValueError: There are fewer patches than codes.
    """
    import faiss
    from sklearn.decomposition import PCA

    if len(patches) < num_codes:
        raise ValueError(f"{len(patches)} patches are too few for {num_codes} codes")
    reduced = PCA(dim, svd_solver="full").fit_transform(patches.numpy())
    # On one thread the sums, and with them the bytes, do not depend on the machine's load.
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        kmeans = faiss.Kmeans(
            dim,
            num_codes,
            niter=25,
            seed=rng.derive_seed(seed, "kmeans") % 2**31,
            max_points_per_centroid=max(256, len(patches) // num_codes + 1),
        )
        kmeans.train(reduced.astype("float32"))
        codes = np.array(kmeans.centroids)
    finally:
        faiss.omp_set_num_threads(threads)
    return torch.from_numpy(codes)


def shuffle_columns(vectors: Float[Tensor, "n D"], seed: int) -> Float[Tensor, "n D"]:
    """Permute each column by itself: every marginal stays, every dependence between channels goes."""
    return _shuffle(vectors, rng.generator(seed, "shuffle"))


def shuffled_pieces(
    pieces: Iterable[Float[Tensor, "m D"]], seed: int, buffer: int = 65536
) -> Iterator[Float[Tensor, "n D"]]:
    """Permute each column by itself, in stretches of at most `buffer` rows; twice as many are held.

    Up to `buffer` rows in all, this is `shuffle_columns` of them; beyond, no stretch has fewer than half
    as many. Only what a stretch has in common stays: let the rows come in an order without meaning,
    not class by class.

    Raises:
        ValueError: `buffer` is less than 1.
    """
    if buffer < 1:
        raise ValueError(f"buffer must be at least 1 row, found {buffer}")
    held: Tensor | None = None
    count = stretch = 0
    for piece in pieces:
        if held is None:
            held = piece.new_empty(2 * buffer, piece.shape[1])
        while len(piece):
            taken = piece[: len(held) - count]
            held[count : count + len(taken)] = taken
            count, piece = count + len(taken), piece[len(taken) :]
            if count == len(held):
                yield _shuffle(held[:buffer], _stretch_generator(seed, stretch))
                held[:buffer] = held[buffer:]
                count, stretch = buffer, stretch + 1
    if held is not None:
        for rows in held[:count].tensor_split(1 if count <= buffer else 2):
            yield _shuffle(rows, _stretch_generator(seed, stretch))
            stretch += 1


def _stretch_generator(seed: int, stretch: int) -> torch.Generator:
    return rng.generator(seed, "shuffle", stretch) if stretch else rng.generator(seed, "shuffle")


def _shuffle(vectors: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.rand(vectors.shape, generator=generator).argsort(0)
    return vectors.gather(0, order)
