"""Spread within modes and shares of modes, on points whose answer is known."""

import pytest
import torch
from torch import Tensor

from flowprior.core import rng
from flowprior.toy.modes import mode_report

MEANS = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
STD = 0.5


def around(shares: list[int], std: float) -> Tensor:
    """So many points around each mean."""
    rows = torch.repeat_interleave(torch.arange(3), torch.tensor(shares))
    return MEANS[rows] + std * torch.randn(len(rows), 2, generator=rng.generator(0))


@pytest.mark.parametrize("factor", [0.05, 1.0, 1.5])
def test_the_ratio_is_that_of_the_standard_deviations(factor: float) -> None:
    """30 000 points know it to about half a percent."""
    found = mode_report(around([10_000] * 3, factor * STD), MEANS, STD)
    assert found["within_mode_std_ratio"] == pytest.approx(factor, rel=0.02)


def test_a_shift_of_a_whole_mode_is_not_spread() -> None:
    """The deviation is from the points' own mean, which collapse may have moved off the mode's centre."""
    points = around([1000] * 3, 0.1 * STD)
    shifted = mode_report(points + 1.0, MEANS, STD)
    still = mode_report(points, MEANS, STD)
    assert shifted["within_mode_std_ratio"] == pytest.approx(still["within_mode_std_ratio"], 1e-4)


def test_shares_are_of_all_modes() -> None:
    found = mode_report(around([60, 40, 0], STD), MEANS, STD)
    assert found["min_mode_share"] == 0
    assert found["max_mode_share"] == pytest.approx(0.6)


def test_a_small_sample_is_not_biased() -> None:
    """Two points a mode: the mean is taken from them, so their squares are divided by one, not by two."""
    points = torch.cat([MEANS - 1, MEANS + 1])
    found = mode_report(points, MEANS, STD)
    assert found["within_mode_std_ratio"] == pytest.approx(2**0.5 / STD)


def test_points_on_top_of_each_other_have_no_spread() -> None:
    assert mode_report(MEANS[:1].expand(9, 2), MEANS, STD)["within_mode_std_ratio"] == 0


@pytest.mark.parametrize(
    ("points", "message"),
    [(torch.zeros(0, 2), "no points"), (MEANS, "at most one point")],
)
def test_too_few_points_are_refused(points: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mode_report(points, MEANS, STD)
