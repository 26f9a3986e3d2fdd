"""The six two-dimensional targets of the toy study (Fig. 3, 5, 6; App. C.1, arXiv:2506.05240)."""

import math
from collections.abc import Callable
from typing import NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from flowprior.core.registry import allowed
from flowprior.toy.closed_forms import GaussianMixture
from flowprior.toy.names import TARGETS, ExactTargetName, TargetName

NOISE = 0.1
"""Standard deviation of what blurs the curves."""
STD_NODES = 100_000

Raw = Callable[[int, torch.Generator], Tensor]
"""Draws so many samples [n, 2]."""


class Target2D(NamedTuple):
    """A distribution in the plane, divided by one number so that both coordinates together have variance 1.

    Attributes:
        name: Which.
        std: What raw samples are divided by: the standard deviation of both coordinates taken
            together. The mean stays.
        density: The exact density of the divided samples, or None where there is no closed form.
        raw: Draws samples before the division.
    """

    name: TargetName
    std: float
    density: GaussianMixture | None
    raw: Raw

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n 2"]:
        """Draw `n` samples, divided by `std`."""
        return self.raw(n, generator) / self.std

    def exact_density(self) -> GaussianMixture:
        """The density in closed form.

        Raises:
            ValueError: There is none.
        """
        if self.density is None:
            exact = ", ".join(get_args(ExactTargetName))
            raise ValueError(f"{self.name} has no density in closed form; use one of {exact}")
        return self.density


def build_target(name: TargetName) -> Target2D:
    """The target of that name.

    Raises:
        ValueError: An unknown name.
    """
    if name == "mixture":
        angles = torch.arange(5, dtype=torch.float64) * (2 * math.pi / 5)
        return _mixture(name, 3 * _polar(torch.ones_like(angles), angles), 0.3)
    if name == "grid":
        places = torch.arange(4, dtype=torch.float64) - 1.5
        return _mixture(name, torch.cartesian_prod(places, places), 0.1)
    if name not in CURVES:
        raise ValueError(f"unknown target {name!r}, {allowed(str(name), TARGETS)}")
    curve, noise = CURVES[name]

    def raw(n: int, generator: torch.Generator) -> Tensor:
        where, which = torch.rand(2, n, generator=generator)
        return noise(curve(where, which), generator)

    return Target2D(name, _curve_std(name), None, raw)


def _mixture(name: TargetName, means: Tensor, std: float) -> Target2D:
    """Equal Gaussians at the means; their density in divided coordinates, with its Jacobian, is again a mixture."""
    whole = math.sqrt(float(means.var(correction=0)) + std**2)
    weights = torch.full((len(means),), 1 / len(means))
    density = GaussianMixture((means / whole).float(), std / whole, weights)

    def raw(n: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(means), (n,), generator=generator)
        return means[chosen].float() + std * torch.randn(n, 2, generator=generator)

    return Target2D(name, whole, density, raw)


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1)


def _moons(where: Tensor, which: Tensor) -> Tensor:
    """Two half circles of radius 2, the lower one moved right by 2 and down by 0.5."""
    upper = _polar(torch.full_like(where, 2.0), math.pi * where)
    lower = torch.stack([upper[:, 0] + 2, -upper[:, 1] - 0.5], -1)
    return torch.where((which < 0.5).unsqueeze(-1), upper, lower)


def _rings(where: Tensor, which: Tensor) -> Tensor:
    """Circles of radius 4/3, 8/3 and 4, equally often."""
    return _polar(((which * 3).floor().clamp(max=2) + 1) * (4 / 3), 2 * math.pi * where)


def _spiral(where: Tensor, which: Tensor) -> Tensor:
    """One arm, one and a half turns, from radius 0.5 to 2."""
    angle = 3 * math.pi * where
    return _polar(0.5 + angle / (2 * math.pi), angle)


def _swiss_roll(where: Tensor, which: Tensor) -> Tensor:
    """Three turns from the centre to radius 6."""
    angle = 6 * math.pi * where
    return _polar(angle / math.pi, angle)


def _blurred(points: Tensor, generator: torch.Generator) -> Tensor:
    return points + NOISE * torch.randn(points.shape, generator=generator)


def _blurred_along_radius(points: Tensor, generator: torch.Generator) -> Tensor:
    radius: Tensor = points.norm(dim=-1, keepdim=True)
    return points * (1 + NOISE * torch.randn(radius.shape, generator=generator) / radius)


CURVES: dict[
    str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, torch.Generator], Tensor]]
] = {
    "moons": (_moons, _blurred),
    "rings": (_rings, _blurred_along_radius),
    "spiral": (_spiral, _blurred),
    "swiss_roll": (_swiss_roll, _blurred),
}
"""Each curve, from two U(0, 1) draws (where on it, which part of it), and its noise."""


def _curve_std(name: str) -> float:
    """Standard deviation of both coordinates together, noise included, by the midpoint rule along the curve."""
    curve, noise = CURVES[name]
    where = (torch.arange(STD_NODES, dtype=torch.float64) + 0.5) / STD_NODES
    parts = [curve(where, torch.full_like(where, which)) for which in (0.1, 0.5, 0.9)]
    points = torch.cat([parts[0], parts[2]] if name == "moons" else parts)
    across = 1.0 if noise is _blurred else 0.5  # radial noise is in one of two directions
    return math.sqrt(float(points.var(correction=0)) + across * NOISE**2)
