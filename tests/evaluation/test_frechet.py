"""The Fréchet distance of Gaussians, against closed forms and others' implementations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from torch import Tensor
from torch_fidelity.metric_fid import fid_statistics_to_metric

from flowprior.core import rng
from flowprior.evaluation.frechet import frechet_distance

PROPERTY = settings(deadline=None, derandomize=True, max_examples=30)
NUMBERS = st.lists(st.floats(-3, 3), min_size=4, max_size=4)
SPREADS = st.lists(st.floats(0, 3), min_size=4, max_size=4)


def gaussian(dim: int, tag: str, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """A mean, and a covariance of full rank unless another is asked for."""
    draw = rng.generator(0, tag)
    mean = torch.randn(dim, generator=draw, dtype=torch.float64)
    factor = torch.randn(dim, rank or 2 * dim, generator=draw, dtype=torch.float64)
    return mean, factor @ factor.T / factor.shape[1]


@PROPERTY
@given(mean=NUMBERS, other_mean=NUMBERS, std=SPREADS, other_std=SPREADS, turn=st.integers(0, 5))
def test_gaussians_with_common_axes_have_a_closed_form(
    mean: list[float],
    other_mean: list[float],
    std: list[float],
    other_std: list[float],
    turn: int,
) -> None:
    """|m - m'|^2 + sum (s - s')^2 along the axes, wherever these point; also where some s are 0."""
    a, b, s, r = (torch.tensor(x, dtype=torch.float64) for x in (mean, other_mean, std, other_std))
    square = torch.randn(4, 4, generator=rng.generator(0, "axes", turn), dtype=torch.float64)
    axes = torch.linalg.qr(square).Q
    found = frechet_distance(
        a, axes @ s.square().diag() @ axes.T, b, axes @ r.square().diag() @ axes.T
    )
    exact = (a - b).square().sum() + (s - r).square().sum()
    # The root of an eigenvalue that should be 0 is 1e-8.
    assert found == pytest.approx(float(exact), rel=1e-6, abs=1e-6)


def test_general_covariances_agree_with_scipys_matrix_root_and_with_torch_fidelity() -> None:
    (m1, c1), (m2, c2) = gaussian(20, "one"), gaussian(20, "two")
    root = np.real(linalg.sqrtm((c1 @ c2).numpy()))
    exact = float((m1 - m2).square().sum() + c1.trace() + c2.trace()) - 2 * np.trace(root)
    found = frechet_distance(m1, c1, m2, c2)
    assert found == pytest.approx(exact, rel=1e-10)
    one, two = ({"mu": m.numpy(), "sigma": c.numpy()} for m, c in ((m1, c1), (m2, c2)))
    theirs = fid_statistics_to_metric(one, two, verbose=False)["frechet_inception_distance"]
    assert found == pytest.approx(theirs, rel=1e-10)


@pytest.mark.parametrize("rank", [None, 5])
def test_a_gaussian_is_at_distance_zero_from_itself(rank: int | None) -> None:
    """Also where there are fewer images than features, and the covariance is singular."""
    mean, covariance = gaussian(100, "self", rank)
    found = frechet_distance(mean, covariance, mean, covariance)
    assert found == pytest.approx(0, abs=1e-10 * float(covariance.trace()))


def test_gaussians_on_orthogonal_lines_share_nothing() -> None:
    """The distance is the sum of both variances."""
    mean = torch.zeros(2, dtype=torch.float64)
    one, two = torch.diag(torch.tensor([4.0, 0.0])), torch.diag(torch.tensor([0.0, 9.0]))
    assert frechet_distance(mean, one.double(), mean, two.double()) == pytest.approx(13)


def test_the_distance_is_symmetric() -> None:
    one, two = gaussian(10, "one"), gaussian(10, "two", rank=3)
    assert frechet_distance(*one, *two) == pytest.approx(frechet_distance(*two, *one), rel=1e-9)
