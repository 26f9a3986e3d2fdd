"""A soft quantiser: latents are mixtures of a codebook's codes; SoftVQ-VAE, arXiv:2412.10958."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from flowprior.autoencoder.bottleneck import Codebooks
from flowprior.core.codes import Codes


class SoftVQBottleneck(nn.Module):
    """A linear map to d channels, then the mean of the codes, each weighed by its softmaxed cosine.

    The n tokens are cut into c runs of n/c, one to a codebook [k, d]. Tokens and codes are taken as
    directions: their norms do not count. Codes learn from the mixture alone, not from the weights. From
    the linear map on everything is in the codebooks' precision, also under autocast. Reads torch's
    global stream for its initialisation.

    Args:
        width: Channels of the encoder's tokens.
        dim: Channels d of a latent.
        num_tokens: Latent tokens n.
        num_codebooks: Codebooks c.
        num_codes: Codes k in each.
        temperature: Of the softmax.

    Raises:
        ValueError: The tokens cannot be shared out among the codebooks, or a size or the temperature
            is not positive.
    """

    def __init__(
        self,
        width: int,
        dim: int,
        num_tokens: int,
        num_codebooks: int = 4,
        num_codes: int = 8192,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        if min(num_tokens, num_codebooks, num_codes) < 1:
            raise ValueError(
                f"num_tokens {num_tokens}, num_codebooks {num_codebooks} and num_codes {num_codes} "
                "must be at least 1"
            )
        if num_tokens % num_codebooks:
            raise ValueError(
                f"{num_tokens} latent tokens cannot be shared out evenly among {num_codebooks} "
                "codebooks; take a number of codebooks that divides the number of tokens"
            )
        _check_temperature(temperature)
        self.num_tokens = num_tokens
        self.temperature = temperature
        self.linear = nn.Linear(width, dim)
        # Paper: uniform in the cube of half side 1/k, then normalised. Here directions are uniform on
        # the sphere. The norm of 1 matters: it sets how far an optimiser's step turns a code.
        self.codebooks = nn.Parameter(
            F.normalize(torch.randn(num_codebooks, num_codes, dim), dim=-1)
        )

    @classmethod
    def build(
        cls, width: int, dim: int, num_tokens: int, codebooks: Codebooks | None
    ) -> "SoftVQBottleneck":
        """Takes widths, tokens and codebooks.

        Raises:
            ValueError: There are no codebooks.
        """
        if codebooks is None:
            raise ValueError("the bottleneck softvq needs codebooks")
        return cls(width, dim, num_tokens, *codebooks)

    def forward(
        self, tokens: Float[Tensor, "b n w"], noise: Float[Tensor, "b n d"] | None = None
    ) -> Codes:
        """Tokens to latents; `noise` is not used.

        Raises:
            ValueError: The number of tokens is not `num_tokens`.
        """
        b, n, _ = tokens.shape
        if n != self.num_tokens:
            raise ValueError(f"{n} tokens came, the codebooks are for {self.num_tokens}")
        runs = (len(self.codebooks), n // len(self.codebooks))
        mapped = self.linear(tokens)
        with torch.autocast(tokens.device.type, enabled=False):
            codes = F.normalize(self.codebooks, dim=-1)
            directions = F.normalize(mapped.to(codes.dtype), dim=-1)  # b n d
            queries = directions.unflatten(1, runs).transpose(0, 1).flatten(1, 2)  # c r d
            logits = queries @ codes.detach().mT  # c r k
            mixed = torch.softmax(logits / self.temperature, dim=-1) @ codes  # c r d
            latents = mixed.unflatten(1, (b, runs[1])).transpose(0, 1).flatten(1, 2)  # b n d
        return Codes(latents, latents, None, logits)


def entropy_loss(
    logits: Float[Tensor, "c r k"],
    gather: Callable[[Tensor], Tensor],
    temperature: float = 0.01,
    chunk: int = 2**24,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Mean entropy of the tokens' assignments minus the entropy of their mean, in nats; and its parts for the log.

    Assignments are softmax(logits / temperature) in float32 at least. From -log k, where every token has one
    code and all codes are used alike, to 0, where all tokens of a codebook have the same assignment. The
    parts: `assignment_entropy`, the first term, of this rank; `code_perplexity`, the exponential of the
    second, from 1 to k, a mean over codebooks, of all ranks.

    For the backward pass only the logits are kept; it makes the assignments again, a chunk at a time.

    Args:
        logits: Of the bottleneck's `Codes`; every rank has as many rows.
        gather: `rng.Draw.gather`; called once, on the rank's mean assignment [1, c, k].
        temperature: Of the softmax; its own, not the bottleneck's.
        chunk: Assignments in memory at a time, in numbers; at least one row of each codebook.

    Raises:
        ValueError: The temperature is not positive.
    """
    # Paper: the authors' mean assignment is of one rank and adds up the k-th codes of all codebooks,
    # which have nothing in common; here it is of the global batch, and each codebook has its own.
    _check_temperature(temperature)
    c, r, k = logits.shape
    entropy, usage = logits.new_zeros(()), logits.new_zeros(c, k)
    for rows in logits.split(max(1, chunk // (c * k)), dim=1):
        sums: Any = checkpoint(
            _sums, rows, temperature, use_reentrant=False, preserve_rng_state=False
        )
        entropy, usage = entropy + sums[0], usage + sums[1]
    entropy = entropy / (c * r)
    usage = gather((usage / r)[None]).mean(0)  # c k
    # A code that no token has any share in (0 in float32) adds 0, with a finite gradient.
    spread = -(usage * usage.clamp(min=torch.finfo(usage.dtype).tiny).log()).sum(-1)  # c
    parts = {"assignment_entropy": entropy, "code_perplexity": spread.exp().mean()}
    return entropy - spread.mean(), parts


def _sums(
    logits: Float[Tensor, "c r k"], temperature: float
) -> tuple[Float[Tensor, ""], Float[Tensor, "c k"]]:
    """Entropies of the assignments, summed over all rows, and the assignments, over the rows of a codebook."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logs = torch.log_softmax(wide / temperature, dim=-1)
    assignments = logs.exp()
    return -(assignments * logs).sum(), assignments.sum(1)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(
            f"the temperature is {temperature}, it must be positive; SoftVQ-VAE has 0.07, "
            "and 0.01 for the entropy"
        )
