"""What stands between encoder and decoder: how the encoder's output becomes latents."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

Bottleneck = Literal["plain", "kl", "softvq"]
BOTTLENECKS: tuple[Bottleneck, ...] = ("plain", "kl", "softvq")


class Codes(NamedTuple):
    """Latents, and what the bottleneck knows of their distribution.

    Attributes:
        latents: What the decoder gets, [b, n, d].
        mean: Posterior mean where there is a posterior, else the latents.
        log_variance: Posterior log-variance [b, n, d], or None.
        logits: Of softvq alone: cosine of each token with the codes of its codebook, [c, r, k]: c
            codebooks with the r = b n/c tokens that are theirs, image by image. Its gradient reaches
            the tokens only.
    """

    latents: Tensor
    mean: Tensor
    log_variance: Tensor | None
    logits: Tensor | None = None


class PlainBottleneck(nn.Module):
    """A linear map from width to d channels; no noise, no quantiser (the paper's AE)."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, dim)

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

    def forward(
        self, tokens: Float[Tensor, "b n w"], noise: Float[Tensor, "b n d"] | None = None
    ) -> Codes:
        """Latents are mean + std * noise, or the mean without noise."""
        mean, log_variance = self.linear(tokens).float().chunk(2, dim=-1)
        log_variance = log_variance.clamp(-30, 20)
        latents = mean if noise is None else mean + torch.exp(0.5 * log_variance) * noise
        return Codes(latents, mean, log_variance)
