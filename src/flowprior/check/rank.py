"""Directions in which targets spread and latents do not."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from flowprior.check.measures import drawn_in

LOST = 0.02
"""Below this share of the usual ratio of variances, latents over targets, a direction is lost."""
NOTHING = 1e-3
"""Below this share of the largest ratio, the usual one is that of a lost direction itself."""
MATTERS = 1e-3
"""Directions in which targets have less than this share of their mean variance do not count."""
VECTORS_A_DIM = 4
"""Latents that are needed for each direction that is looked at."""


class Rank(NamedTuple):
    """What latents span of the directions that matter.

    Attributes:
        lost: Directions that they do not.
        looked_at: Directions that could be told: in which targets vary, and no more than latents allow.
        kept: An orthonormal basis of what they do span, [d, looked_at - lost].
    """

    lost: int
    looked_at: int
    kept: ndarray


def rank_of(latents: Float[ndarray, "n d"], targets: Float[ndarray, "m _d"]) -> Rank:
    """Compare variances in the directions that latents themselves choose.

    The directions are those of the generalised eigenvalues of both covariances, within the targets' leading principal
    components, so that a subspace that is tilted against the targets' axes is found too.
    """
    latents, targets = drawn_in(latents), drawn_in(targets)
    values, vectors = np.linalg.eigh(np.cov(targets, rowvar=False).reshape(targets.shape[1], -1))
    values, vectors = values[::-1], vectors[:, ::-1]
    most = max(1, min(len(latents), len(targets)) // VECTORS_A_DIM)
    num = min(int((values > MATTERS * values.mean()).sum()), most)
    basis = vectors[:, :num]
    covariance = np.cov(latents @ basis, rowvar=False).reshape(num, num)
    roots = np.sqrt(values[:num])
    ratios, directions = np.linalg.eigh(covariance / np.outer(roots, roots))
    usual = float(np.median(ratios[num // 2 :]))
    if usual < NOTHING * ratios[-1]:  # most of them are lost
        usual = float(ratios[-1])
    lost = int((ratios < LOST * usual).sum())
    kept = np.linalg.qr(roots[:, None] * directions[:, lost:])[0]
    return Rank(lost, num, basis @ kept)
