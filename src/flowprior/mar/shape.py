"""Sizes of a MAR, and what it is trained on."""

from typing import Literal, NamedTuple

Decay = Literal["matrices", "linear", "authors"]
"""Which parameters are decayed; see `MAR.undecayed`."""


class MARShape(NamedTuple):
    """Sizes of a MAR.

    Attributes:
        num_tokens: Tokens n of a sequence.
        dim: Channels d of a token.
        num_classes: Classes; one more row of the table stands for "no class".
        width: Of both transformers.
        encoder_depth: Blocks over the visible tokens.
        decoder_depth: Blocks over all tokens.
        num_heads: Attention heads.
        num_buffer: Copies of the class embedding in front of the tokens.
        head_width: Hidden width of the flow head.
        head_depth: Its residual blocks.
        dropout: In attention and MLP of the transformers.
    """

    num_tokens: int
    dim: int
    num_classes: int
    width: int
    encoder_depth: int
    decoder_depth: int
    num_heads: int
    num_buffer: int
    head_width: int
    head_depth: int
    dropout: float


class Masking(NamedTuple):
    """How a MAR is trained; the ratio's defaults are those of arXiv:2406.11838.

    Attributes:
        num_draws: Draws of noise and time for each masked token.
        ratio_low: Least share of masked tokens.
        ratio_std: The share is 1 - |N(0, ratio_std)|, not below `ratio_low`.
    """

    num_draws: int = 4
    ratio_low: float = 0.7
    ratio_std: float = 0.25
