"""The stochastic equation has the marginals of the ordinary one."""

import pytest
import torch
from torch import Tensor

from flowprior.core import rng
from flowprior.flow.ode import integrate
from flowprior.flow.sde import integrate_sde
from flowprior.toy.closed_forms import gaussian_velocity

MEAN, STD = 1.5, 0.4


field = gaussian_velocity(MEAN, STD)
"""The exact velocity of N(MEAN, STD^2)."""


def start(n: int) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(n, 1, generator=rng.generator(0, "start"), dtype=torch.float64)


@pytest.mark.parametrize("churn", [0.5, 1.0, 3.0])
def test_any_churn_ends_in_the_distribution_of_the_data(churn: float) -> None:
    """Mean and std of a Gaussian, whose velocity is known exactly; the error of the step halves with it."""
    n = 40_000
    drawn = integrate_sde(field, start(n), 200, rng.generator(0, "sde"), churn)
    # Standard errors: 0.4 / 200 of the mean, 0.35% of the std; the steps add about 1 / 200.
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.015)
    assert drawn.std().item() == pytest.approx(STD, rel=0.03)


def test_noise_is_exchanged() -> None:
    """The ODE keeps what it starts from, the SDE forgets it: the more, the higher the churn."""
    n = 20_000
    x = start(n)
    kept = [
        torch.corrcoef(
            torch.stack([x, integrate_sde(field, x, 100, rng.generator(1), churn)]).squeeze(-1)
        )[0, 1].item()
        for churn in (0.0, 0.3, 1.0, 3.0)
    ]
    assert kept[0] == pytest.approx(1)
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] < 0.3


def test_without_churn_it_is_euler_to_the_bit() -> None:
    found = integrate_sde(field, start(100), 7, rng.generator(0), 0.0)
    assert torch.equal(found, integrate(field, start(100), 7, "euler"))


def test_at_temperature_zero_no_noise_is_added() -> None:
    """Nor by the step that arrives at the data, at any temperature."""
    x = start(50)
    cold = [
        integrate_sde(field, x, 5, rng.generator(seed), 1.0, temperature=0) for seed in range(2)
    ]
    assert torch.equal(*cold)
    last = [integrate_sde(field, x, 1, rng.generator(seed), 1.0, start=0.9) for seed in range(2)]
    assert torch.equal(*last)
    assert not torch.equal(
        *(integrate_sde(field, x, 1, rng.generator(seed), 1.0, end=0.5) for seed in range(2))
    )


@pytest.mark.parametrize(("num_steps", "churn"), [(0, 1.0), (-1, 1.0), (5, -0.1)])
def test_steps_and_churn_out_of_range_are_an_error(num_steps: int, churn: float) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        integrate_sde(field, start(3), num_steps, rng.generator(0), churn)
