"""The straight path from noise to data, and how its times are drawn.

The convention, stated here once: `t = 0` is noise, `t = 1` is data (the direction of the paper; the
authors' image code runs the other way round). Legend for shapes: b batch, n tokens, d channels, g
groups, h w pixels; `*batch` is any leading shape.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from flowprior.core import rng


def interpolate(
    noise: Float[Tensor, "*batch d"], data: Float[Tensor, "*batch d"], t: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*batch d"]:
    """The point at time `t` of the straight path, x_t = (1 - t) noise + t data."""
    t = t.unsqueeze(-1)
    return (1 - t) * noise + t * data


def conditional_velocity(
    noise: Float[Tensor, "*batch d"], data: Float[Tensor, "*batch d"]
) -> Float[Tensor, "*batch d"]:
    """The velocity of the straight path, which does not depend on time."""
    return data - noise


def stratified_times(
    num_groups: int, like: Tensor, generator: torch.Generator | None = None
) -> Float[Tensor, "g 1"]:
    """One time for each of `num_groups` groups of vectors, one in each of as many equal strata of (0, 1).

    The strata are dealt to the groups at random, so the time of any one group is exactly U(0, 1):
    an average over groups is an unbiased estimate of the expectation over independent times, with
    less variance.
    """
    strata = rng.permutation(num_groups, like, generator)
    # Made like what was drawn before: a compiler may swap draws that do not depend on one another.
    within = rng.uniform((num_groups,), strata.to(like.dtype), generator)
    return ((strata + within) / num_groups).to(like.dtype).unsqueeze(-1)


def group_vectors(vectors: Float[Tensor, "n d"], num_groups: int) -> Float[Tensor, "g m d"]:
    """Split n vectors into at most `num_groups` groups of m, the last padded with zeros.

    Undo with `.flatten(0, 1)[:n]`.
    """
    n, d = vectors.shape
    size = -(-n // num_groups)
    groups = -(-n // size)
    padded = torch.nn.functional.pad(vectors, (0, 0, 0, groups * size - n))
    return padded.view(groups, size, d)
