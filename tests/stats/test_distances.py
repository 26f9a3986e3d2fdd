"""Distortion of distances: none for similarities, a known one for a stretch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowprior.core import rng
from flowprior.stats.distances import Distortion, pair_distortion

PROPERTY = settings(deadline=None, derandomize=True, max_examples=30)


def normal(*shape: int, tag: str = "x") -> Tensor:
    """Fixed standard normal numbers, float32."""
    return torch.randn(*shape, generator=rng.generator(0, tag))


def distortion(before: Tensor, after: Tensor, num_pairs: int = 5000) -> Distortion:
    """Of fixed pairs."""
    return pair_distortion(before, after, rng.generator(0, "pairs"), num_pairs)


@PROPERTY
@given(scale=st.floats(0.01, 100), shift=st.floats(-10, 10), dim=st.integers(1, 8))
def test_a_similarity_distorts_nothing(scale: float, shift: float, dim: int) -> None:
    """Rotation, scale and shift shrink all distances alike: spread 0, every quantile 1."""
    points = normal(100, dim).double()
    rotation, _ = torch.linalg.qr(normal(dim, dim, tag="rotation").double())
    found = distortion(points, scale * points @ rotation + shift)
    # Rounding of coordinates of size 10 under distances of size 1e-3 and more.
    assert found.std == pytest.approx(0, abs=1e-8)
    assert found.p05 == pytest.approx(1, abs=1e-8)
    assert found.p95 == pytest.approx(1, abs=1e-8)


def test_a_stretch_of_one_axis_has_its_closed_form() -> None:
    """Corners of a square with one side doubled: ratios 1, 2 and sqrt(5 / 2) for its sides and diagonals."""
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    stretched = corners * torch.tensor([2.0, 1.0])
    a, b = torch.randint(4, (2, 5000), generator=rng.generator(0, "pairs"))
    ratio_of = {(True, False): 2.0, (False, True): 1.0, (True, True): math.sqrt(2.5)}
    moved = (corners[a] != corners[b]).tolist()
    ratios = np.array([ratio_of[x, y] for x, y in moved if x or y])
    ratios = ratios / ratios.mean()
    found = distortion(corners, stretched)
    assert found.num_pairs == len(ratios) < 5000
    assert found.std == pytest.approx(ratios.std(ddof=1), rel=1e-6)
    assert found.p05 == pytest.approx(ratios.min(), rel=1e-6)
    assert found.p95 == pytest.approx(ratios.max(), rel=1e-6)


@pytest.mark.parametrize("dim", [4, 16, 64])
def test_a_random_projection_distorts_by_a_chi_distribution(dim: int) -> None:
    """A Gaussian matrix maps every distance to it times chi_d: relative spread sqrt(d / E[chi_d]^2 - 1)."""
    points = normal(400, 256)
    found = distortion(points, points @ normal(256, dim, tag="matrix"), 20_000)
    mean = math.sqrt(2) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))
    # Pairs share one matrix, whose rows in 256 dims are nearly, not quite, independent directions.
    assert found.std == pytest.approx(math.sqrt(dim / mean**2 - 1), rel=0.1)
    assert found.p05 < 1 < found.p95


def test_rows_that_coincide_are_left_out() -> None:
    """Their ratio would be 0 / 0; those that the map alone brings together count."""
    points = normal(2, 3).repeat_interleave(torch.tensor([5, 1]), dim=0)
    found = distortion(points, 2 * points)
    # Of 36 ordered pairs 10 are apart.
    assert found.num_pairs == pytest.approx(5000 * 10 / 36, rel=0.1)
    assert found.std == pytest.approx(0, abs=1e-12)
    collapsed = distortion(normal(50, 3), normal(50, 3) * torch.tensor([1.0, 0.0, 0.0]))
    assert collapsed.num_pairs > 4800
    assert collapsed.std > 0.3


@pytest.mark.parametrize("n", [1, 5])
def test_points_that_all_coincide_are_an_error_that_says_so(n: int) -> None:
    """There is no distance to look at."""
    with pytest.raises(ValueError, match="coincide"):
        distortion(torch.zeros(n, 3), torch.zeros(n, 2))


def test_pairs_come_from_the_generator_alone() -> None:
    """Equal generators give equal figures to the bit, others do not."""
    before, after = normal(100, 8), normal(100, 3, tag="y")
    found = [pair_distortion(before, after, rng.generator(seed), 500) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    assert len(pair_distortion(before, after, rng.generator(1))) == 4
