"""Objectives that compare with samples of the targets."""

import pytest
import torch

from flowprior.alignment.samples import MomentMatching, SlicedWasserstein, squared_mmd

from .latents import DIM, draw, normal, plain


def test_sliced_w2_of_a_shifted_set_is_the_squared_shift_over_the_dims() -> None:
    points = normal(200, 1, DIM)
    objective = SlicedWasserstein(lambda n, generator: points.flatten(0, 1) + 2.0, 4096)
    assert objective(plain(points), draw(200)).item() == pytest.approx(4.0, rel=0.1)


def test_mmd_of_two_heaps_is_twice_what_the_kernels_lack_of_one() -> None:
    widths = 2 * DIM * torch.tensor([0.01, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0])
    x, y = torch.zeros(5, DIM), torch.zeros(7, DIM)
    y[:, 0] = 2.0
    exact = 2 - 2 * (widths / (widths + 4)).mean()
    assert squared_mmd(x, y).item() == pytest.approx(exact.item(), rel=1e-5)
    assert squared_mmd(x, x).item() == pytest.approx(0, abs=1e-6)


def test_moments_are_zero_where_they_agree_and_see_a_shift_and_a_spread() -> None:
    x = normal(400, 1, DIM)
    flat = x.flatten(0, 1)
    objective = MomentMatching(flat.mean(0), flat.T.cov(correction=0))
    assert objective(plain(x), draw(400)).item() == pytest.approx(0, abs=1e-9)
    assert objective(plain(x + 1), draw(400)).item() == pytest.approx(1, rel=1e-4)
    assert objective(plain(2 * x), draw(400)).item() > 0.5
