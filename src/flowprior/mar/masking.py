"""What MAR is trained on: which tokens are masked, and the noise and times of the flow head."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


def draw_orders(b: int, n: int, generator: torch.Generator) -> Int[Tensor, "b n"]:
    """Independent uniform permutations of 0 .. n-1."""
    return torch.rand(b, n, generator=generator).argsort(dim=-1)


def draw_num_masked(n: int, generator: torch.Generator, low: float = 0.7, std: float = 0.25) -> int:
    """How many of n tokens to mask: ceil(n r), r ~ N(1, std^2) truncated to [low, 1]; one draw for a batch.

    Raises:
        ValueError: `low` is outside [0, 1], or `std` is not positive.
    """
    if not 0 <= low <= 1:
        raise ValueError(f"the least ratio of masked tokens must lie in [0, 1], found {low}")
    if std <= 0:
        raise ValueError(f"the std of the ratio of masked tokens must be positive, found {std}")
    cdf_low = 0.5 * (1 + math.erf((low - 1) / std / math.sqrt(2)))
    u = cdf_low + (0.5 - cdf_low) * torch.rand((), generator=generator, dtype=torch.float64)
    ratio = 1 + std * float(torch.special.ndtri(u))
    return max(1, math.ceil(n * min(1.0, ratio)))


class MaskedBatch(NamedTuple):
    """The arguments of `MAR.forward`.

    Attributes:
        tokens: [b, n, d].
        labels: [b].
        orders: [b, n].
        num_masked: m.
        noise: [k, b, m, d].
        t: [k, b, m].
    """

    tokens: Tensor
    labels: Tensor
    orders: Tensor
    num_masked: int
    noise: Tensor
    t: Tensor

    def shared(self, share: Callable[[Tensor, int], Tensor]) -> "MaskedBatch":
        """This rank's part: `share(tensor, dim)` takes it from a batch."""
        return MaskedBatch(
            share(self.tokens, 0),
            share(self.labels, 0),
            share(self.orders, 0),
            self.num_masked,
            share(self.noise, 1),
            share(self.t, 1),
        )


def draw_masking(
    tokens: Float[Tensor, "b n d"],
    labels: Int[Tensor, " b"],
    num_draws: int,
    generator: torch.Generator,
    ratio_low: float = 0.7,
    ratio_std: float = 0.25,
) -> MaskedBatch:
    """Draw what is masked, and k = `num_draws` of noise and time for each masked token.

    The defaults of the ratio are those of MAR, arXiv:2406.11838, and of the authors; see
    `draw_num_masked`.
    """
    b, n, d = tokens.shape
    m = draw_num_masked(n, generator, ratio_low, ratio_std)
    orders = draw_orders(b, n, generator)
    noise = torch.randn(num_draws, b, m, d, generator=generator)
    t = torch.rand(num_draws, b, m, generator=generator)
    return MaskedBatch(tokens, labels, orders, m, noise, t)
