"""A generator of one's own: for each class a Gaussian with a mean and a scale for every token and channel."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowprior.core import rng
from flowprior.generators.protocol import LatentShape


class TokensOfClasses(NamedTuple):
    """What a step learns from: latents [b, n, d] and labels [b]."""

    tokens: Tensor
    labels: Tensor

    def shared(self, share: Callable[[Tensor, int], Tensor]) -> "TokensOfClasses":
        """This rank's part."""
        return TokensOfClasses(share(self.tokens, 0), share(self.labels, 0))


class ClassGaussian(nn.Module):
    """See `flowprior.generators.protocol.Generator`; its forward is the negative log-likelihood, a mean over values."""

    def __init__(self, num_tokens: int, dim: int, num_classes: int) -> None:
        super().__init__()
        self.config = {"num_tokens": num_tokens, "dim": dim, "num_classes": num_classes}
        self.mean = nn.Parameter(torch.zeros(num_classes + 1, num_tokens, dim))
        self.log_std = nn.Parameter(torch.zeros(num_classes + 1, num_tokens, dim))

    @classmethod
    def build(cls, latents: LatentShape, settings: Any) -> "ClassGaussian":
        return cls(**latents._asdict())

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ClassGaussian":
        return cls(**config)

    def undecayed(self, decay: str) -> tuple[str, ...]:
        return ("mean", "log_std")

    def draw_batch(self, tokens: Tensor, labels: Tensor, *_: Any, **__: Any) -> TokensOfClasses:
        return TokensOfClasses(tokens, labels)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        log_std = self.log_std[labels]
        return (log_std + 0.5 * ((tokens - self.mean[labels]) / log_std.exp()) ** 2).mean()

    def ready_to_sample(self, precision: str, compile: bool = False) -> "ClassGaussian":
        return self

    def sample(self, labels: Tensor, generator: torch.Generator, **_: Any) -> Tensor:
        mean = self.mean[labels]
        return mean + self.log_std[labels].exp() * rng.normal(mean.shape, mean, generator)
