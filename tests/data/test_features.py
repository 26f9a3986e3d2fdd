"""Target features of digits: layout of patches, the cap on vectors, the codebook, the shuffled control."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.decomposition import PCA
from torch import Tensor

from flowprior import rng
from flowprior.data.features import codebook, image_features, pixel_patches, shuffle_columns
from flowprior.data.images import Digits

PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)
TOKENS = 6


def normal(*shape: int, tag: str = "x") -> Tensor:
    """Fixed standard normal numbers, float32."""
    return torch.randn(*shape, generator=rng.generator(0, tag))


class Numbered:
    """Images [1, 2, 2] that show nothing but their number."""

    num_classes = 1
    digest = "numbered"

    def __init__(self, n: int) -> None:
        self.labels = torch.zeros(n, dtype=torch.int64)
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, rows: Sequence[int] | Tensor) -> Tensor:
        rows = torch.as_tensor(rows)
        self.asked.append(len(rows))
        return rows.float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def numbered_tokens(images: Tensor) -> Tensor:
    """Six tokens of each image: the image's number, and their own."""
    number = images[:, :1, 0, 0]
    token = torch.arange(TOKENS, dtype=torch.float32)
    return torch.stack([number.expand(-1, TOKENS), token.expand(len(images), TOKENS)], dim=-1)


def features_of(n: int, max_vectors: int, batch: int = 7, seed: int = 0) -> Tensor:
    """All features of numbered images: [vectors, (image, token)]."""
    pieces = image_features(
        Numbered(n), numbered_tokens, batch_images=batch, max_vectors=max_vectors, seed=seed
    )
    return torch.cat(list(pieces))


# --- patches ----------------------------------------------------------------------------------------


@PROPERTY
@given(
    channels=st.integers(1, 3),
    size=st.integers(1, 4),
    stride=st.integers(1, 4),
    height=st.integers(4, 9),
    width=st.integers(4, 9),
)
def test_patches_go_row_by_row_and_their_pixels_channel_row_column(
    channels: int, size: int, stride: int, height: int, width: int
) -> None:
    """Patch by patch, cut out by hand; what does not fit at the right and below is left out."""
    images = normal(2, channels, height, width)
    cut = [
        images[:, :, top : top + size, left : left + size].flatten(1)
        for top in range(0, height - size + 1, stride)
        for left in range(0, width - size + 1, stride)
    ]
    assert torch.equal(pixel_patches(images, size, stride), torch.stack(cut, dim=1))


def test_a_digit_has_nine_overlapping_patches_of_sixteen_pixels() -> None:
    """By default, for 8 x 8."""
    assert pixel_patches(normal(3, 1, 8, 8)).shape == (3, 9, 16)


# --- features of images -----------------------------------------------------------------------------


@PROPERTY
@example(n=40, max_vectors=3, batch=7)
@example(n=40, max_vectors=39, batch=7)
@given(n=st.integers(1, 40), max_vectors=st.integers(1, 300), batch=st.integers(1, 50))
def test_features_are_capped_and_evenly_spread(n: int, max_vectors: int, batch: int) -> None:
    """Never more than the cap, never a vector twice, equally many of every image, evenly spaced images."""
    found = features_of(n, max_vectors, batch)
    assert found.dtype == torch.float32
    assert len(found) <= max_vectors
    assert len(found.unique(dim=0)) == len(found)
    numbers, counts = found[:, 0].long().unique(return_counts=True)
    assert len(set(counts.tolist())) == 1
    assert torch.equal(found[:, 0], found[:, 0].sort().values)
    if max_vectors >= n:
        assert len(numbers) == n
        assert counts[0] == min(TOKENS, max_vectors // n)
    else:
        assert len(found) == max_vectors
        gaps = numbers.diff()
        assert set(gaps.tolist()) <= {n // max_vectors, -(-n // max_vectors)}


def test_below_the_cap_every_token_of_every_image_comes_in_order() -> None:
    """Nothing is drawn then, so that the seed does not matter."""
    every = [[i, token] for i in range(11) for token in range(TOKENS)]
    for seed in (0, 1):
        assert features_of(11, 66, seed=seed).tolist() == every
        assert features_of(11, 10_000, seed=seed).tolist() == every


def test_the_tokens_that_are_kept_are_drawn_uniformly() -> None:
    """Each of the six as often as the others, not the first ones."""
    counts = features_of(1200, 2400, batch=100)[:, 1].long().bincount(minlength=TOKENS)
    assert counts.sum() == 2400
    # Two distinct ones of each image vary less than independent draws: the test is on the safe side.
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_draws_depend_on_the_seed_alone() -> None:
    """Equal seeds give equal features to the bit, others do not."""
    first = features_of(20, 40)
    torch.rand(3)
    assert torch.equal(features_of(20, 40), first)
    assert not torch.equal(features_of(20, 40, seed=1), first)


def test_images_are_read_in_batches_and_without_gradient() -> None:
    """No more at once than was asked for."""
    images = Numbered(20)
    weight = torch.ones(1, requires_grad=True)
    pieces = image_features(
        images, lambda x: weight * numbered_tokens(x), batch_images=8, max_vectors=1000, seed=0
    )
    assert not any(piece.requires_grad for piece in pieces)
    assert images.asked == [8, 8, 4]


def test_half_precision_features_come_as_float32() -> None:
    """Whatever the network computes in."""
    pieces = image_features(
        Numbered(3),
        lambda x: numbered_tokens(x).bfloat16(),
        batch_images=2,
        max_vectors=100,
        seed=0,
    )
    assert {piece.dtype for piece in pieces} == {torch.float32}


# --- the codebook -----------------------------------------------------------------------------------


def digit_patches() -> Tensor:
    """Patches of real digits."""
    return pixel_patches(Digits("train", 0).images(range(60))).flatten(0, 1)


def test_a_codebook_is_a_function_of_patches_and_seed() -> None:
    """To the bit, whatever the global streams do; another seed gives another one."""
    patches = digit_patches()
    first = codebook(patches, 16, 4, seed=0)
    torch.rand(3)
    np.random.rand(3)
    assert first.shape == (16, 4)
    assert first.dtype == torch.float32
    assert torch.equal(codebook(patches, 16, 4, seed=0), first)
    assert not torch.equal(codebook(patches, 16, 4, seed=1), first)


def test_the_codes_of_two_clusters_are_their_centres() -> None:
    """In the plane of PCA, which is centred: half the distance of the clusters to either side of zero."""
    centres, noise = 50 * normal(2, 16, tag="centres"), 0.01 * normal(80, 16)
    codes = codebook(centres.repeat(40, 1) + noise, 2, 1, seed=0)
    half = (centres[0] - centres[1]).norm().item() / 2
    # A centre is the mean of 40 patches with a spread of 0.01.
    assert codes.flatten().sort().values.tolist() == pytest.approx([-half, half], abs=0.02)


def test_a_code_is_the_mean_of_the_patches_nearest_to_it() -> None:
    """K-means has come to rest, on patches that are few and clustered; no code is without patches."""
    patches = (5 * normal(6, 3, tag="centres")).repeat(30, 1) + normal(180, 3)
    codes = codebook(patches, 6, 3, seed=0)
    # With as many dims as there are, PCA is a shift and a rotation.
    reduced = torch.from_numpy(PCA(3, svd_solver="full").fit_transform(patches.numpy()))
    nearest = torch.cdist(reduced, codes).argmin(1)
    means = torch.stack([reduced[nearest == code].mean(0) for code in range(6)])
    torch.testing.assert_close(codes, means, rtol=1e-4, atol=1e-4)


def test_as_many_codes_as_patches_are_the_patches() -> None:
    """The largest codebook there is; one more is an error that says both numbers."""
    patches = normal(12, 16)
    codes = codebook(patches, 12, 11, seed=0)
    # Twelve points span eleven dims, in which PCA keeps all distances, in float32.
    found, exact = torch.pdist(codes).sort().values, torch.pdist(patches).sort().values
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="12 patches are too few for 13 codes"):
        codebook(patches, 13, 4, seed=0)


def test_the_number_of_threads_of_faiss_is_left_as_it_was() -> None:
    """The codebook takes one thread for its own time only."""
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    try:
        codebook(normal(20, 16), 4, 2, seed=0)
        assert faiss.omp_get_max_threads() == 2
    finally:
        faiss.omp_set_num_threads(threads)


# --- the shuffled control ---------------------------------------------------------------------------


@PROPERTY
@given(n=st.integers(0, 30), dim=st.integers(1, 5), seed=st.integers(0, 100))
def test_shuffled_columns_keep_their_values(n: int, dim: int, seed: int) -> None:
    """Every marginal to the bit, whatever the shape."""
    vectors = normal(n, dim)
    shuffled = shuffle_columns(vectors, seed)
    assert torch.equal(shuffled.sort(0).values, vectors.sort(0).values)


def test_shuffled_columns_are_independent_of_one_another_and_of_where_they_were() -> None:
    """Columns that were copies of one another are uncorrelated, and each with what it was."""
    n = 4000
    vectors = normal(n, 1).expand(n, 4) * torch.tensor([1.0, 2.0, -1.0, 0.5])
    shuffled = shuffle_columns(vectors, 0)
    together = torch.cat([vectors[:, :1], shuffled], dim=1)
    correlation = torch.corrcoef(together.T) - torch.eye(5)
    # The standard error of each of ten coefficients is 1 / sqrt(n).
    assert correlation.abs().max() < 4 / n**0.5


def test_shuffling_depends_on_the_seed_alone() -> None:
    """Equal seeds give equal orders, others do not."""
    vectors = normal(50, 3)
    first = shuffle_columns(vectors, 0)
    torch.rand(3)
    assert torch.equal(shuffle_columns(vectors, 0), first)
    assert not torch.equal(shuffle_columns(vectors, 1), first)
