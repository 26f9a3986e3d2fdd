"""What stands between encoder and decoder: how the encoder's output becomes latents."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowprior.autoencoder.names import BOTTLENECKS
from flowprior.core.codes import Codes


class Codebooks(NamedTuple):
    """What the softvq bottleneck is built with besides the sizes of its tokens; see `SoftVQBottleneck`."""

    num_codebooks: int
    num_codes: int
    temperature: float


class PlainBottleneck(nn.Module):
    """A linear map from width to d channels; no noise, no quantiser (the paper's AE)."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, dim)

    @classmethod
    def build(
        cls, width: int, dim: int, num_tokens: int, codebooks: Codebooks | None
    ) -> "PlainBottleneck":
        """Takes widths alone."""
        return cls(width, dim)

    def forward(
        self, tokens: Float[Tensor, "b n w"], noise: Float[Tensor, "b n d"] | None = None
    ) -> Codes:
        latents = self.linear(tokens)
        return Codes(latents, latents, None)


class KLBottleneck(nn.Module):
    """A diagonal Gaussian posterior: its mean and log-variance from one linear map (the paper's KL row)."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * dim)

    @classmethod
    def build(
        cls, width: int, dim: int, num_tokens: int, codebooks: Codebooks | None
    ) -> "KLBottleneck":
        """Takes widths alone."""
        return cls(width, dim)

    def forward(
        self, tokens: Float[Tensor, "b n w"], noise: Float[Tensor, "b n d"] | None = None
    ) -> Codes:
        """Latents are mean + std * noise, or the mean without noise."""
        mean, log_variance = self.linear(tokens).float().chunk(2, dim=-1)
        log_variance = log_variance.clamp(-30, 20)
        latents = mean if noise is None else mean + torch.exp(0.5 * log_variance) * noise
        return Codes(latents, mean, log_variance)


def build_bottleneck(
    kind: str, width: int, dim: int, num_tokens: int, codebooks: Codebooks | None = None
) -> nn.Module:
    """The bottleneck of the given kind, from the encoder's width to the latents' channels.

    Args:
        kind: Of `flowprior.autoencoder.names.BOTTLENECKS`.
        width: Channels of the encoder's tokens.
        dim: Channels d of a latent.
        num_tokens: Latent tokens n.
        codebooks: Of softvq; the others have none.

    Raises:
        ValueError: softvq without codebooks, or with ones that do not go with the tokens.
    """
    bottleneck: nn.Module = BOTTLENECKS.load(kind).build(width, dim, num_tokens, codebooks)
    return bottleneck
