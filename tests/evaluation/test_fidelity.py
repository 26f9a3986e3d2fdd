"""Fréchet distance, inception score, precision and recall on features that can be written down."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from torch import Tensor

from flowprior.core import rng
from flowprior.evaluation.fidelity import (
    NEIGHBOURS,
    generation_metrics,
    label_agreement,
    register_extractor,
)

EXTRACTOR = "four_pixels"
PROPERTY = settings(deadline=None, derandomize=True, max_examples=15)
MATRIX = torch.randn(4, 3, generator=rng.generator(0, "matrix"), dtype=torch.float64)


def pixels(images: Tensor) -> Tensor:
    """The four pixels of an image of 2 x 2, divided by 16, are its features."""
    return images.flatten(1).double() / 16


@pytest.fixture(scope="module", autouse=True)
def extractors() -> None:
    """What torch-fidelity knows for the tests of this file; logits are the same, times 3."""
    register_extractor(EXTRACTOR, pixels, lambda images: 3 * pixels(images))
    register_extractor("mixed", lambda x: (pixels(x) @ MATRIX).float(), pixels)


def images(n: int, tag: str = "x", low: int = 0, high: int = 256) -> Tensor:
    """Fixed random bytes, [n, 1, 2, 2]."""
    draw = rng.generator(0, tag)
    return torch.randint(low, high, (n, 1, 2, 2), generator=draw).to(torch.uint8)


def corners(mean: list[int], spread: list[int]) -> Tensor:
    """All 16 images mean +- spread, whose features have exactly this mean and a diagonal covariance."""
    signs = torch.tensor(list(itertools.product([-1, 1], repeat=4)))
    values = torch.tensor(mean) + signs * torch.tensor(spread)
    return values.to(torch.uint8).view(16, 1, 2, 2)


def compare(generated: Tensor, real: Tensor, extractor: str = EXTRACTOR, **options: Any) -> dict:
    """The metrics by the extractor of four pixels, unless another is asked for."""
    return generation_metrics(generated, real, extractor, **options)


# --- the Fréchet distance ---------------------------------------------------------------------------


@PROPERTY
@given(
    means=st.lists(st.integers(60, 190), min_size=8, max_size=8),
    spreads=st.lists(st.integers(1, 60), min_size=8, max_size=8),
)
def test_the_frechet_distance_of_gaussians_with_diagonal_covariance_has_its_closed_form(
    means: list[int], spreads: list[int]
) -> None:
    """|m - m'|^2 + sum (s - s')^2, in float64; variances are divided by n - 1."""
    one, two = corners(means[:4], spreads[:4]), corners(means[4:], spreads[4:])
    found = compare(one, two, with_diversity=False)
    difference = (np.array(means[:4]) - np.array(means[4:])) / 16
    std = np.sqrt(16 / 15) * (np.array(spreads[:4]) - np.array(spreads[4:])) / 16
    assert set(found) == {"fd_four_pixels"}
    # The trace of a root of a product of covariances, by eigenvalues in float64.
    exact = (difference**2).sum() + (std**2).sum()
    assert found["fd_four_pixels"] == pytest.approx(exact, rel=1e-6, abs=1e-6)


def test_the_frechet_distance_is_that_of_scipys_matrix_root() -> None:
    """For full covariances, of features that the network gives in float32."""
    one, two = images(200), images(150, "y", high=200)
    sides = []
    for side in (one, two):
        features = (pixels(side) @ MATRIX).float().double().numpy()
        sides.append((features.mean(0), np.cov(features.T)))
    (m1, c1), (m2, c2) = sides
    exact = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * np.real(linalg.sqrtm(c1 @ c2)))
    found = compare(one, two, "mixed", with_diversity=False)
    assert found["fd_mixed"] == pytest.approx(exact, rel=1e-6)


def test_equal_sets_are_at_distance_zero() -> None:
    """Whatever the order of the images; precision and recall are 1."""
    real = images(60)
    found = compare(real.flip(0), real)
    # Differences of traces of order 100 in float64.
    assert found["fd_four_pixels"] == pytest.approx(0, abs=1e-6)
    assert found["precision"] == found["recall"] == 1


def test_the_frechet_distance_is_symmetric() -> None:
    """Unlike precision and recall, which change places."""
    one, two = images(60), images(50, "y", high=128)
    forth, back = compare(one, two), compare(two, one)
    assert forth["fd_four_pixels"] == pytest.approx(back["fd_four_pixels"], rel=1e-9)
    assert forth["precision"] == back["recall"]
    assert forth["recall"] == back["precision"]


# --- precision and recall ---------------------------------------------------------------------------


def test_one_real_image_again_and_again_is_precise_and_recalls_nothing() -> None:
    """Pins which input is which: all generated images are real, and all but one real images are missed."""
    real = images(40)
    found = compare(real[:1].repeat(40, 1, 1, 1), real)
    assert found["precision"] == 1
    assert found["recall"] == pytest.approx(1 / 40, abs=1e-6)  # a float32 mean


def test_everything_real_and_as_much_besides_recalls_all_and_is_less_precise() -> None:
    """The reverse: a real set of one repeated image, which the generated images include once."""
    generated = images(40)
    found = compare(generated, generated[:1].repeat(40, 1, 1, 1))
    assert found["precision"] == pytest.approx(1 / 40, abs=1e-6)  # a float32 mean
    assert found["recall"] == 1


def test_precision_counts_generated_images_within_the_real_manifold() -> None:
    """Half of them among the real ones and half far away: one half; the balls reach the third neighbour."""
    assert NEIGHBOURS == 3
    real = images(60, high=100)
    generated = torch.cat([real[:20], images(20, "far", low=200)])
    found = compare(generated, real)
    assert found["precision"] == 0.5


# --- the inception score ----------------------------------------------------------------------------


def test_the_inception_score_counts_the_classes_that_are_drawn_surely_and_equally_often() -> None:
    """Exp of the mutual information of image and class: k for k sure classes, 1 for images all alike."""
    one_hot = 255 * torch.eye(4).to(torch.uint8).view(4, 1, 2, 2).repeat(10, 1, 1, 1)
    real = images(40)
    for k in (1, 2, 4):
        generated = one_hot[torch.arange(40) % k]
        found = compare(generated, real)["inception_score_four_pixels"]
        assert found == pytest.approx(k, rel=1e-9)
    black = torch.zeros_like(one_hot)
    assert compare(black, real)["inception_score_four_pixels"] == pytest.approx(1, rel=1e-9)


# --- the call ---------------------------------------------------------------------------------------


def test_keys_name_the_extractor_and_take_a_suffix() -> None:
    """A distance on features other than Inception's is not called FID."""
    found = compare(images(20), images(20, "y"), suffix="_guided")
    assert set(found) == {
        "fd_four_pixels_guided",
        "inception_score_four_pixels_guided",
        "precision_guided",
        "recall_guided",
    }
    assert all(type(value) is float for value in found.values())


def test_the_batch_size_does_not_matter() -> None:
    """Up to the order of sums; the last batch may be incomplete."""
    generated, real = images(33), images(21, "y")
    one, many = (compare(generated, real, batch=batch) for batch in (5, 512))
    assert one == pytest.approx(many, rel=1e-9)


def test_calls_with_one_extractor_do_not_see_one_anothers_images() -> None:
    """Nothing is cached between them, though the inputs have the same name and size."""
    real = images(30)
    first = compare(real, real, with_diversity=False)["fd_four_pixels"]
    second = compare(images(30, "z", high=20), real, with_diversity=False)["fd_four_pixels"]
    assert first == pytest.approx(0, abs=1e-6)
    assert second > 10


def test_registering_a_name_again_replaces_it() -> None:
    """A stage that runs twice in a process judges by the network that it gave last."""
    register_extractor("again", pixels, pixels)
    register_extractor("again", lambda x: 2 * pixels(x), pixels)
    one, two = corners([100] * 4, [10] * 4), corners([116] * 4, [10] * 4)
    found = compare(one, two, "again", with_diversity=False)
    # Four dims, each 1 apart, or 2 apart by the second network.
    assert found["fd_again"] == pytest.approx(16, rel=1e-6)


@pytest.mark.parametrize(("right", "share"), [(0, 0.0), (3, 0.75), (4, 1.0)])
def test_label_agreement_is_the_share_of_images_of_their_class(right: int, share: float) -> None:
    """By the largest logit."""
    labels = torch.tensor([0, 1, 2, 1])
    logits = torch.nn.functional.one_hot(labels, 3).float() + 0.1
    asked = torch.where(torch.arange(4) < right, labels, (labels + 1) % 3)
    assert label_agreement(logits, asked) == share
