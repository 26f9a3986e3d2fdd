"""The two-sample test guesses between equals and tells others apart."""

import numpy as np
import pytest
from numpy import ndarray

from flowprior.stats.two_sample import classifier_two_sample


def normal(n: int, dim: int, seed: int) -> ndarray:
    """Fixed standard normal numbers, float32."""
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def test_two_samples_of_one_distribution_are_not_told_apart() -> None:
    """One half, within four standard errors of 2 x 500 guesses."""
    found = classifier_two_sample(normal(500, 3, 0), normal(500, 3, 1), 0)
    assert found == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(1000))


def test_samples_far_apart_are_told_apart() -> None:
    """Ten standard deviations: hardly an error."""
    assert classifier_two_sample(normal(300, 3, 0), normal(300, 3, 1) + 10, 0) > 0.99


def test_samples_with_equal_moments_are_told_apart_by_their_shape() -> None:
    """A ring and a Gaussian of its covariance: the network is not linear (but needs thousands of vectors)."""
    angles = np.random.default_rng(1).uniform(0, 2 * np.pi, 2000)
    ring = np.sqrt(2) * np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert classifier_two_sample(normal(2000, 2, 0), ring, 0) > 0.75


def test_the_further_apart_the_easier() -> None:
    """Accuracy grows with the distance of the means, to that of the best rule, Phi(distance / 2)."""
    a, b = normal(400, 2, 0), normal(400, 2, 1)
    found = [
        classifier_two_sample(a, b + np.array([shift, 0], dtype=np.float32), 0)
        for shift in (0.0, 1.0, 3.0)
    ]
    assert found == sorted(found)
    # Phi(0.5) = 0.69 and Phi(1.5) = 0.93; 800 guesses and a network that has seen 400 vectors.
    assert found[1] == pytest.approx(0.69, abs=0.07)
    assert found[2] == pytest.approx(0.93, abs=0.05)


def test_the_larger_sample_is_cut_to_the_smaller() -> None:
    """Else guessing the larger one would do: the rest of it does not matter, on either side."""
    a, b = normal(60, 2, 0), normal(300, 2, 1)
    found = classifier_two_sample(a, b, 0)
    assert found == classifier_two_sample(a, b[:60], 0)
    assert classifier_two_sample(b, a, 0) == classifier_two_sample(b[:60], a, 0)


def test_the_result_depends_on_the_seed_alone() -> None:
    """Equal seeds give equal accuracies, whatever NumPy's global stream does."""
    a, b = normal(100, 2, 0), normal(100, 2, 1) + 0.5
    first = classifier_two_sample(a, b, 3)
    np.random.rand(3)
    assert classifier_two_sample(a, b, 3) == first


@pytest.mark.parametrize(("n", "m"), [(19, 100), (100, 19), (0, 0)])
def test_too_few_vectors_are_an_error(n: int, m: int) -> None:
    """It says how many are needed and how many there were of each; twenty are enough."""
    with pytest.raises(ValueError, match=f"at least 20 vectors of each, found {n} and {m}"):
        classifier_two_sample(normal(n, 2, 0), normal(m, 2, 1), 0)


def test_twenty_vectors_are_enough() -> None:
    """The bound that the message names."""
    assert 0 <= classifier_two_sample(normal(20, 2, 0), normal(20, 2, 1), 0) <= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_an_error(bad: float) -> None:
    """They would look like a half, which is as good as it gets."""
    a, b = normal(50, 2, 0), normal(50, 2, 1) + 50
    a[3, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        classifier_two_sample(a, b, 0)
