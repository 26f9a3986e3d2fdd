"""Codes: latents with their posterior or their assignments to codes; bottlenecks give them, objectives read them."""

from typing import NamedTuple

from torch import Tensor


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
