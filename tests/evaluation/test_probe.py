"""What a linear probe can read, and what it cannot."""

import numpy as np
import pytest
from numpy import ndarray

from flowprior.evaluation.probe import linear_probe_accuracy


def features(n: int, dim: int, seed: int) -> ndarray:
    """Fixed standard normal numbers, float32."""
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def test_classes_apart_are_read_without_error() -> None:
    """Three clusters far from one another, with labels that need not start at 0."""
    centres = np.array([[20, 0], [0, 20], [-20, -20]], dtype=np.float32)
    labels = np.arange(90) % 3
    one, two = centres[labels] + features(90, 2, 0), centres[labels] + features(90, 2, 1)
    assert linear_probe_accuracy(one, 7 * labels + 5, two, 7 * labels + 5) == 1


def test_labels_without_relation_are_guessed() -> None:
    """One in four, within four standard errors of 1000 guesses."""
    labels, held_out = (np.random.default_rng(seed).integers(4, size=1000) for seed in (2, 3))
    found = linear_probe_accuracy(features(1000, 3, 0), labels, features(1000, 3, 1), held_out)
    assert found == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 1000))


def test_what_is_not_linear_is_not_read() -> None:
    """The sign of a product, of which a line can only cut off a corner; the product itself makes it linear."""
    train, held_out = features(1000, 2, 0), features(1000, 2, 1)
    train_labels, labels = ((x.prod(1) > 0).astype(np.int64) for x in (train, held_out))
    assert linear_probe_accuracy(train, train_labels, held_out, labels) < 0.7
    train, held_out = (np.c_[x, x.prod(1)] for x in (train, held_out))
    assert linear_probe_accuracy(train, train_labels, held_out, labels) > 0.95


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_scale_of_a_feature_does_not_matter(scale: float) -> None:
    """They are standardised by the training set's moments, channel by channel."""
    train, held_out = features(200, 3, 0), features(200, 3, 1)
    train_labels, labels = (
        (x[:, 0] + 0.5 * x[:, 2] > 0).astype(np.int64) for x in (train, held_out)
    )
    scales = np.array([scale, 1, 1 / scale], dtype=np.float32)
    found = linear_probe_accuracy(scales * train + 3, train_labels, scales * held_out + 3, labels)
    assert found > 0.95


def test_accuracy_is_that_of_the_held_out_side() -> None:
    """Where held-out labels are turned around, everything is wrong that was right."""
    train, held_out = features(300, 2, 0), features(300, 2, 1)
    train_labels, labels = ((x[:, 0] > 0).astype(np.int64) for x in (train, held_out))
    right = linear_probe_accuracy(train, train_labels, held_out, labels)
    wrong = linear_probe_accuracy(train, train_labels, held_out, 1 - labels)
    assert right > 0.95
    assert right + wrong == pytest.approx(1, abs=1e-12)


def test_of_one_class_there_is_nothing_to_read() -> None:
    """As of faces or bedrooms."""
    x, y = np.random.default_rng(0).normal(size=(40, 4)), np.zeros(40, dtype=int)
    assert linear_probe_accuracy(x, y, x[:8], y[:8]) is None
