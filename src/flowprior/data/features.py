"""Target features at the scale of digits, one function for each kind of prior; vectors are float32 [n, D]."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowprior import rng
from flowprior.data.images import ImageSet, batches

Extractor = Callable[[Tensor], Tensor]
"""Images [b, c, h, w] to features [b, tokens, D]."""


def pixel_patches(
    images: Float[Tensor, "b c H W"], size: int = 4, stride: int = 2
) -> Float[Tensor, "b p f"]:
    """Raw square patches of pixels, overlapping where `stride` < `size`."""
    return torch.nn.functional.unfold(images, size, stride=stride).transpose(1, 2)


def image_features(
    images: ImageSet, extract: Extractor, *, batch_images: int, max_vectors: int, seed: int
) -> Iterator[Float[Tensor, "n D"]]:
    """Features of all images, in pieces; at most `max_vectors`, spread evenly.

    Where there would be more, equally many tokens of every image are drawn; where there are more
    images than `max_vectors`, one of each of evenly spaced images.
    """
    count = min(len(images), max_vectors)
    rows = (torch.arange(count, dtype=torch.float64) * len(images) / count).long()
    per_image = max_vectors // count
    for piece in batches(count, batch_images):
        picked = rows[list(piece)]
        with torch.no_grad():
            tokens = extract(images.images(picked))
        if tokens.shape[1] > per_image:
            draw = rng.generator(seed, "tokens", piece.start)
            order = torch.rand(tokens.shape[:2], generator=draw).argsort(-1)[:, :per_image]
            tokens = tokens.gather(1, order.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        yield tokens.flatten(0, 1).float()


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
    order = torch.rand(vectors.shape, generator=rng.generator(seed, "shuffle")).argsort(0)
    return vectors.gather(0, order)
