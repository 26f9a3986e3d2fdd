"""The velocity network: an MLP whose layers are modulated by time (and by a condition), AdaLN style."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from flowprior.flow.path import conditional_velocity, interpolate

LATE = 1e-3
"""Offset of the ratio t / (1 - t), whose logarithm is the clock of a preconditioned velocity."""


class TimeEmbedding(nn.Module):
    """Sinusoids of time, then a two-layer MLP.

    Args:
        width: Channels of the output.
        num_frequencies: Geometric frequencies from 1 down to 1 / max_period; t is used as it is: a time in [0, 1], or
            the clock of a `PreconditionedVelocity`.
        max_period: The longest period over 2 pi.
    """

    def __init__(
        self, width: int, num_frequencies: int = 128, max_period: float = 10_000.0
    ) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.max_period = max_period
        self.first = nn.Linear(2 * num_frequencies, width)
        self.second = nn.Linear(width, width)

    def forward(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch w"]:
        exponent = torch.arange(self.num_frequencies, dtype=torch.float32, device=t.device)
        frequencies = torch.exp(-math.log(self.max_period) * exponent / self.num_frequencies)
        angles = t.float().unsqueeze(-1) * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        out: Tensor = self.second(F.silu(self.first(waves.to(self.first.weight.dtype))))
        return out


class ModulatedBlock(nn.Module):
    """Residual block: LayerNorm, shift and scale, Linear, SiLU, Linear, gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 3 * width)

    def forward(
        self, h: Float[Tensor, "*batch w"], condition: Float[Tensor, "*#batch w"]
    ) -> Float[Tensor, "*batch w"]:
        shift, scale, gate = self.modulation(condition).chunk(3, dim=-1)
        out: Tensor = h + gate * self.mlp(self.norm(h) * (1 + scale) + shift)
        return out


class VelocityMLP(nn.Module):
    """v(x, t), optionally v(x, t, condition), as an MLP with adaptive layer norm; App. C.2, arXiv:2506.05240.

    The modulation is computed in the shape of `t` (broadcast with `condition`): vectors that share
    a time, as x [g, m, d] with t [g, 1], share its cost, which is 64% of the multiplications of a
    vector at width 1024. Every block is the identity and the output is zero at initialisation.

    Args:
        dim: Channels d of a vector.
        width: Hidden width w.
        depth: Number of residual blocks.
        condition_dim: Channels of the condition, or None for a field without one.
        lifted: Whether the input is [x, tanh x, tanh 3x] instead of x: then functions of single channels are near at
            hand, as independent channels of heavy tails or of few values need them.

    Raises:
        ValueError: Called without a condition where it was built with one, or the other way round.
    """

    # Paper: GELU (App. C.2); the authors' code, followed here, has SiLU.

    def __init__(
        self,
        dim: int,
        width: int,
        depth: int,
        condition_dim: int | None = None,
        lifted: bool = False,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.lifted = lifted
        self.time = TimeEmbedding(width)
        self.condition = nn.Linear(condition_dim, width) if condition_dim is not None else None
        self.input = nn.Linear(3 * dim if lifted else dim, width)
        self.blocks = nn.ModuleList(ModulatedBlock(width) for _ in range(depth))
        self.final_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, dim)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for linear in (self.time.first, self.time.second):
            nn.init.normal_(linear.weight, std=0.02)
        for name, module in self.named_modules():
            if name.endswith("modulation") or module is self.output:
                nn.init.zeros_(module.get_parameter("weight"))

    def forward(
        self,
        x: Float[Tensor, "*batch d"],
        t: Float[Tensor, "*#batch"],
        condition: Float[Tensor, "*#batch c"] | None = None,
    ) -> Float[Tensor, "*batch d"]:
        context = self.time(t)
        if self.condition is not None:
            if condition is None:
                raise ValueError("this velocity was built with a condition; pass one")
            context = context + self.condition(condition)
        elif condition is not None:
            raise ValueError("this velocity was built without a condition; do not pass one")
        context = F.silu(context)
        h = self.input(torch.cat([x, x.tanh(), (3 * x).tanh()], -1) if self.lifted else x)
        for block in self.blocks:
            h = block(h, context)
        shift, scale = self.final_modulation(context).chunk(2, dim=-1)
        out: Tensor = self.output(self.final_norm(h) * (1 + scale) + shift)
        return out


class CentredVelocity(nn.Module):
    """The velocity of data with a mean m, by a network that models data - m.

    With x_t = (1 - t) noise + t data, the network sees x_t - t m, and v(x, t) = m + network(x - t m, t): the losses of
    both are equal, and so are the densities, moved by m.

    Args:
        velocity: The network; a module with the attribute `dim`.
        mean: m, [d].

    Raises:
        ValueError: The mean is not [d].
    """

    mean: Tensor

    def __init__(self, velocity: nn.Module, mean: Float[Tensor, " d"]) -> None:
        super().__init__()
        self.velocity = velocity
        self.dim = int(velocity.dim)  # type: ignore[arg-type]
        if tuple(mean.shape) != (self.dim,):
            raise ValueError(f"the mean must be [{self.dim}], found {list(mean.shape)}")
        self.register_buffer("mean", mean)

    def forward(
        self, x: Float[Tensor, "*batch d"], t: Float[Tensor, "*#batch"]
    ) -> Float[Tensor, "*batch d"]:
        out: Tensor = self.velocity(x - t.unsqueeze(-1) * self.mean, t) + self.mean
        return out


class PreconditionedVelocity(nn.Module):
    """The velocity of data with mean m and covariance C: that of the Gaussian with both, plus a network.

    For a Gaussian the velocity is linear and known. Along a principal axis of variance s, with x_t = (1 - t) noise + t
    data and var = (1 - t)^2 + s t^2, it is (s t - (1 - t)) / var times x_t, and sqrt(s / var) is the spread of what
    remains. The network sees x_t in units of sqrt(var) and gives what remains in units of its spread, so that all axes
    and times are as easy, however narrow an axis is (the idea of Karras et al., arXiv:2206.00364, for a covariance).

    Args:
        network: Gives what remains; a module with the attribute `dim`.
        mean: m, [d].
        variances: s, [d], above 0.
        axes: Principal axes as columns, [d, d].

    Raises:
        ValueError: Mean, variances and axes are not those of d channels.
    """

    mean: Tensor
    variances: Tensor
    axes: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Float[Tensor, " d"],
        variances: Float[Tensor, " d"],
        axes: Float[Tensor, "d d"],
    ) -> None:
        super().__init__()
        self.velocity = network
        self.dim = int(network.dim)  # type: ignore[arg-type]
        if tuple(axes.shape) != (self.dim, self.dim) or mean.shape != variances.shape:
            raise ValueError(f"the covariance must be that of {self.dim} channels")
        self.register_buffer("mean", mean)
        self.register_buffer("variances", variances)
        self.register_buffer("axes", axes)

    def forward(
        self, x: Float[Tensor, "*batch d"], t: Float[Tensor, "*#batch"]
    ) -> Float[Tensor, "*batch d"]:
        centred = (x - t.unsqueeze(-1) * self.mean) @ self.axes
        linear, unit, spread = self._factors(t)
        remains = self._remains(centred * unit, t) @ self.axes
        out: Tensor = (linear * centred + spread * remains) @ self.axes.mT + self.mean
        return out

    def training_loss(
        self,
        data: Float[Tensor, "*batch d"],
        noise: Float[Tensor, "*batch d"],
        t: Float[Tensor, "*#batch"],
    ) -> Float[Tensor, "*batch"]:
        """The flow matching loss with each axis and time in units of its spread; its minimum is at the same field."""
        data, noise = (data - self.mean) @ self.axes, noise @ self.axes
        linear, unit, spread = self._factors(t)
        x_t = interpolate(noise, data, t)
        wanted = (conditional_velocity(noise, data) - linear * x_t) / spread
        return (self._remains(x_t * unit, t) @ self.axes - wanted).square().mean(-1)

    def _remains(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's answer in the data's own channels, whose structure a rotation would hide."""
        t = t.clamp(0, 1)  # an adaptive solver looks beyond the ends
        clock = torch.log((t + LATE) / (1 - t + LATE))
        out: Tensor = self.velocity(x @ self.axes.mT, clock)
        return out

    def _factors(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t = t.unsqueeze(-1)
        var = (1 - t).square() + self.variances * t.square()
        linear = (self.variances * t - (1 - t)) / var
        return linear, var.rsqrt(), (self.variances / var).sqrt()
