"""Target features: layout of patches, which images and tokens, the codebook, the shuffled control."""

import hashlib
import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.decomposition import PCA
from torch import Tensor

from flowprior.core import rng
from flowprior.features.of_images import (
    codebook,
    image_features,
    pixel_patches,
    shuffle_columns,
    shuffled_pieces,
)
from flowprior.images.digits import Digits

PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)
TOKENS = 6


def normal(*shape: int, tag: str = "x") -> Tensor:
    """Fixed standard normal numbers, float32."""
    return torch.randn(*shape, generator=rng.generator(0, tag))


class Numbered:
    """Images [1, 2, 2] that show nothing but their number; of one class, where no labels are given."""

    digest = "numbered"

    def __init__(self, n: int, labels: Sequence[int] | None = None) -> None:
        self.labels = torch.zeros(n, dtype=torch.int64) if labels is None else torch.tensor(labels)
        self.num_classes = 1 + int(self.labels.max())
        self.class_names = tuple(map(str, range(self.num_classes)))
        self.channels = 3
        self.corrupt: dict[str, str] = {}
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
    """Never more than the cap, never a vector twice, equally many of every image."""
    found = features_of(n, max_vectors, batch)
    assert found.dtype == torch.float32
    assert len(found) <= max_vectors
    assert len(found.unique(dim=0)) == len(found)
    numbers, counts = found[:, 0].long().unique(return_counts=True)
    assert len(set(counts.tolist())) == 1
    if max_vectors >= n:
        assert torch.equal(found[:, 0], found[:, 0].sort().values)
        assert len(numbers) == n
        assert counts[0] == min(TOKENS, max_vectors // n)
    else:
        assert len(found) == max_vectors


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


@pytest.mark.parametrize(
    ("max_vectors", "sha256"),
    [
        (4_000, "db4781eac10d3d3b24dcc24aa6a3af7e535f13561179fa16f236338bdf2df3ab"),
        (100_000, "3fb3aaa2a22e2200455e91e432223758c1ea90ecb7234343b51d064d7dca945b"),
    ],
    ids=["smoke", "digits"],
)
def test_the_patches_of_digits_are_those_of_the_committed_runs(
    max_vectors: int, sha256: str
) -> None:
    """Golden: bytes of commit 19f6cf9, before images were chosen by class; with tokens drawn and without."""
    pieces = image_features(
        Digits("train", 0), pixel_patches, batch_images=512, max_vectors=max_vectors, seed=0
    )
    assert hashlib.sha256(torch.cat(list(pieces)).numpy().tobytes()).hexdigest() == sha256


def chosen(labels: list[int], count: int, seed: int = 0) -> list[int]:
    """Which images are taken where there may be `count`, in the order in which they come."""
    pieces = image_features(
        Numbered(len(labels), labels),
        lambda images: numbered_tokens(images)[:, :1],
        batch_images=5,
        max_vectors=10_000,
        max_images=count,
        seed=seed,
    )
    return torch.cat(list(pieces))[:, 0].long().tolist()


@PROPERTY
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    count=st.integers(1, 60),
    seed=st.integers(0, 100),
)
def test_fewer_images_come_evenly_from_the_classes(
    labels: list[int], count: int, seed: int
) -> None:
    """No class is ahead of another by more than one image, unless the other has no more; all along the way."""
    found = chosen(labels, count, seed)
    assert len(found) == len(set(found)) == min(count, len(labels))
    if count >= len(labels):
        assert found == list(range(len(labels)))
        return
    size = np.bincount(labels)
    for stop in range(1, len(found) + 1):
        taken = np.bincount([labels[i] for i in found[:stop]], minlength=len(size))
        assert (taken >= np.minimum(size, taken.max() - 1)).all()


def test_the_choice_of_images_is_drawn_from_the_seed() -> None:
    """Neither the first images of a class nor its first class are preferred."""
    labels = [i // 50 for i in range(200)]
    assert chosen(labels, 41, seed=3) == chosen(labels, 41, seed=3)
    draws = [chosen(labels, 41, seed) for seed in range(200)]
    within = [i % 50 for draw in draws for i in draw]
    assert np.mean(within) == pytest.approx(24.5, abs=4 * (50 / 12**0.5) / len(within) ** 0.5)
    last = np.bincount([labels[draw[-1]] for draw in draws], minlength=4)
    assert stats.chisquare(last).pvalue > 1e-3


def test_the_smaller_cap_counts() -> None:
    """Of images, or of vectors where there may be fewer than images."""
    for max_vectors, max_images, expected in [(100, 3, 3), (2, 3, 2), (100, 300, 20)]:
        pieces = image_features(
            Numbered(20),
            lambda images: numbered_tokens(images)[:, :1],
            batch_images=8,
            max_vectors=max_vectors,
            max_images=max_images,
            seed=0,
        )
        assert len(torch.cat(list(pieces))) == expected


@pytest.mark.parametrize("max_images", [None, 37])
@pytest.mark.parametrize("n", [40, 400])
def test_no_more_is_held_than_a_batch(n: int, max_images: int | None) -> None:
    """Whatever the number of images: nothing is read before it is asked for, nothing kept after."""
    images = Numbered(n)
    alive: list[weakref.ref[Tensor]] = []

    def extract(batch: Tensor) -> Tensor:
        assert not any(reference() is not None for reference in alive)
        tokens = numbered_tokens(batch)
        alive.extend([weakref.ref(batch), weakref.ref(tokens)])
        return tokens

    pieces = image_features(
        images, extract, batch_images=4, max_vectors=3 * n, max_images=max_images, seed=0
    )
    assert images.asked == []
    read = 0
    for piece in pieces:
        del piece
        read += 1
        assert len(images.asked) == read
    assert read == -(-(max_images or n) // 4)


@pytest.mark.gpu
def test_tokens_of_a_device_come_to_the_cpu() -> None:
    """The same as from the CPU."""
    pieces = image_features(
        Numbered(11),
        lambda x: numbered_tokens(x.to("cuda")),
        batch_images=4,
        max_vectors=33,
        seed=0,
    )
    found = torch.cat(list(pieces))
    assert found.device.type == "cpu"
    assert torch.equal(found, features_of(11, 33, batch=4))


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


def stream(vectors: Tensor, size: int) -> Iterator[Tensor]:
    """Vectors in pieces of that many rows."""
    yield from vectors.split(size)


@PROPERTY
@given(n=st.integers(1, 30), size=st.integers(1, 40), slack=st.integers(0, 10))
def test_few_rows_are_shuffled_in_pieces_as_at_once(n: int, size: int, slack: int) -> None:
    """To the bit, however the pieces are cut; so for digits."""
    vectors = normal(n, 3)
    found = list(shuffled_pieces(stream(vectors, size), 5, buffer=n + slack))
    assert torch.equal(torch.cat(found), shuffle_columns(vectors, 5))


@PROPERTY
@given(n=st.integers(1, 90), size=st.integers(1, 40), buffer=st.integers(1, 20))
def test_many_rows_are_shuffled_in_stretches(n: int, size: int, buffer: int) -> None:
    """Of at most `buffer` rows and no fewer than half as many: each has its own rows, column by column."""
    vectors = normal(n, 3)
    start = 0
    for piece in shuffled_pieces(stream(vectors, size), 0, buffer):
        stretch = vectors[start : start + len(piece)]
        assert torch.equal(piece.sort(0).values, stretch.sort(0).values)
        assert min(n, buffer / 2) <= len(piece) <= buffer
        start += len(piece)
    assert start == n


def test_the_pieces_do_not_matter_and_every_stretch_has_an_order_of_its_own() -> None:
    """Equal rows at equal places of two stretches come out in different orders."""
    vectors = normal(50, 2).repeat(4, 1)
    first = torch.cat(list(shuffled_pieces(stream(vectors, 7), 0, buffer=50)))
    assert torch.equal(first, torch.cat(list(shuffled_pieces(stream(vectors, 200), 0, buffer=50))))
    for other in range(50, 200, 50):
        assert not torch.equal(first[other : other + 50], first[:50])


def test_shuffled_pieces_of_nothing_are_none() -> None:
    """And a buffer without rows is an error."""
    assert list(shuffled_pieces([], 0)) == []
    with pytest.raises(ValueError, match="at least 1 row, found 0"):
        list(shuffled_pieces([normal(2, 2)], 0, buffer=0))


def test_shuffling_in_pieces_reads_no_further_than_twice_the_buffer() -> None:
    """A stream of millions of rows need not fit into memory."""
    asked = 0

    def counted() -> Iterator[Tensor]:
        nonlocal asked
        for _ in range(100):
            asked += 1
            yield normal(10, 2)

    pieces = shuffled_pieces(counted(), 0, buffer=40)
    assert asked == 0
    for done in range(1, 10):
        next(pieces)
        assert asked == 4 + 4 * done
