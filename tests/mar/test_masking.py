"""What training masks."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flowprior.core import rng
from flowprior.mar.masking import draw_masking, draw_num_masked, draw_orders

from .small import PROPERTY, batch

N, D, CLASSES = 7, 3, 4


@PROPERTY
@given(b=st.integers(1, 8), n=st.integers(1, 40), seed=st.integers(0, 1000))
def test_orders_are_permutations(b: int, n: int, seed: int) -> None:
    """Every place once in every sequence."""
    orders = draw_orders(b, n, rng.generator(seed))
    assert torch.equal(orders.sort(dim=-1).values, torch.arange(n).expand(b, n))


def test_orders_are_uniform_and_independent() -> None:
    """All 36 pairs of orders of two sequences of three places come equally often."""
    orders = draw_orders(2 * 7200, 3, rng.generator(0, "orders")).view(-1, 6).tolist()
    every = [[*one, *two] for one in permutations(range(3)) for two in permutations(range(3))]
    counts = [orders.count(pair) for pair in every]
    assert sum(counts) == 7200
    # The generator is fixed; a fair draw falls below once in a thousand.
    assert stats.chisquare(counts).pvalue > 1e-3


@PROPERTY
@given(n=st.integers(1, 300), seed=st.integers(0, 10_000))
def test_between_seven_tenths_and_all_tokens_are_masked(n: int, seed: int) -> None:
    """ceil(0.7 n) to n, bounds included, and never none."""
    assert math.ceil(0.7 * n) <= draw_num_masked(n, rng.generator(seed)) <= n


def test_the_number_of_masked_tokens_is_a_truncated_normal_rounded_up() -> None:
    """Frequencies and mean are those of ceil(64 r), r ~ scipy's truncnorm of N(1, 0.25^2) to [0.7, 1]."""
    n, draws = 64, 4000
    ratio = stats.truncnorm(-0.3 / 0.25, 0.0, loc=1.0, scale=0.25)
    counts = np.arange(math.ceil(0.7 * n), n + 1)
    probability = ratio.cdf(counts / n) - ratio.cdf((counts - 1) / n)
    assert probability.sum() == pytest.approx(1, abs=1e-12)
    generator = rng.generator(0, "masked")
    found = np.array([draw_num_masked(n, generator) for _ in range(draws)])
    mean = (counts * probability).sum()
    standard_error = math.sqrt(((counts - mean) ** 2 * probability).sum() / draws)
    assert mean == pytest.approx(56, abs=0.5)  # reference.md §7: about 56 of 64
    assert found.mean() == pytest.approx(mean, abs=4 * standard_error)
    frequencies = [(found == count).sum() for count in counts]
    # The generator is fixed; a fair draw falls below once in a thousand.
    assert stats.chisquare(frequencies, draws * probability).pvalue > 1e-3


def test_a_masking_has_the_shapes_that_forward_takes() -> None:
    """Draws of noise and time for each masked token, and tokens and labels as they came."""
    tokens, labels, _ = batch()
    drawn = draw_masking(tokens, labels, 4, rng.generator(0))
    m = drawn.num_masked
    assert drawn.tokens is tokens
    assert drawn.labels is labels
    assert drawn.orders.shape == (5, N)
    assert drawn.noise.shape == (4, 5, m, D)
    assert drawn.t.shape == (4, 5, m)
    assert 0 <= drawn.t.min() < drawn.t.max() < 1
    again = draw_masking(tokens, labels, 4, rng.generator(0))
    assert all(
        torch.equal(torch.as_tensor(a), torch.as_tensor(b))
        for a, b in zip(drawn, again, strict=True)
    )


def test_the_ratio_of_masked_tokens_can_be_set() -> None:
    """Its bound and its spread reach the draw; outside their range they are an error."""
    tokens, labels, _ = batch()
    low = [
        draw_masking(tokens, labels, 1, rng.generator(i), ratio_low=0.1, ratio_std=1.0).num_masked
        for i in range(60)
    ]
    assert min(low) <= 2
    assert max(low) == N
    all_masked = draw_masking(tokens, labels, 1, rng.generator(0), ratio_low=1.0)
    assert all_masked.num_masked == N
    for wrong in ({"ratio_low": -0.1}, {"ratio_low": 1.1}, {"ratio_std": 0.0}):
        with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
            draw_masking(tokens, labels, 1, rng.generator(0), **wrong)
