"""Interim."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch

from flowprior.flow.gaussian import GaussianMixture

TargetName = Literal["mixture", "grid", "moons", "rings", "spiral", "swiss_roll"]


class Target2D(NamedTuple):
    name: str
    std: float
    density: GaussianMixture | None
    raw: Callable

    def sample(self, n, generator):
        return self.raw(n, generator) / self.std


def build_target(name):
    def rings(n, g):
        r = torch.tensor([4 / 3, 8 / 3, 4.0])[
            torch.randint(3, (n,), generator=g)
        ] + 0.1 * torch.randn(n, generator=g)
        a = 2 * math.pi * torch.rand(n, generator=g)
        return torch.stack([r * a.cos(), r * a.sin()], 1)

    def spiral(n, g):
        th = 3 * math.pi * torch.rand(n, generator=g)
        r = (0.5 + th / (2 * math.pi)).clamp(max=3)
        return torch.stack([r * th.cos(), r * th.sin()], 1) + 0.1 * torch.randn(n, 2, generator=g)

    def swiss(n, g):
        th = 6 * math.pi * torch.rand(n, generator=g)
        return torch.stack([th * th.cos(), th * th.sin()], 1) / math.pi + 0.1 * torch.randn(
            n, 2, generator=g
        )

    def moons(n, g):
        th = math.pi * torch.rand(n, generator=g)
        up = torch.rand(n, generator=g) < 0.5
        x = torch.where(up, 2 * th.cos(), 2 * th.cos() + 2)
        y = torch.where(up, 2 * th.sin(), -2 * th.sin() - 0.5)
        return torch.stack([x, y], 1) + 0.1 * torch.randn(n, 2, generator=g)

    if name in ("mixture", "grid"):
        if name == "mixture":
            a = torch.arange(5) * 2 * math.pi / 5
            m = 3 * torch.stack([a.cos(), a.sin()], 1)
            s = 0.3
        else:
            c = torch.arange(4) - 1.5
            m = torch.cartesian_prod(c, c)
            s = 0.1
        std = math.sqrt(float((m - m.mean()).square().mean()) + s * s)
        mix = GaussianMixture(m / std, s / std, torch.full((len(m),), 1 / len(m)))

        def raw(n, g):
            return m[torch.randint(len(m), (n,), generator=g)] + s * torch.randn(n, 2, generator=g)

        return Target2D(name, std, mix, raw)
    raw = {"rings": rings, "spiral": spiral, "swiss_roll": swiss, "moons": moons}[name]
    return Target2D(name, float(raw(1000000, torch.Generator().manual_seed(0)).std()), None, raw)


def kernel_log_density(points, samples, bandwidth=0.1):
    out = []
    for p in points.split(64):
        d = torch.cdist(p, samples).square()
        out.append(torch.logsumexp(-d / (2 * bandwidth**2), 1))
    return torch.cat(out) - math.log(len(samples) * 2 * math.pi * bandwidth**2)
