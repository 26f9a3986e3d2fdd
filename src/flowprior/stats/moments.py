"""Moments of vectors that do not fit into memory at once."""

import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor


class Moments:
    """Count, mean and covariance of vectors that arrive in pieces, in float64.

    Pieces are merged by Chan's parallel update, so a large common mean does not eat the digits of
    the variance.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)

    @property
    def std(self) -> float:
        """Root of the variance about the mean of each dim, averaged over dims."""
        return float(self.covariance.diagonal().mean().sqrt())

    @property
    def dim(self) -> int:
        """Channels of a vector."""
        return len(self.mean)

    @property
    def covariance(self) -> Float[Tensor, "D D"]:
        """The covariance, divided by the count."""
        return self._scatter / max(self.count, 1)

    @property
    def effective_rank(self) -> float:
        """Exp of the entropy of the covariance's normalised eigenvalues: between 1 and D (Roy and Vetterli, 2007)."""
        eigenvalues = torch.linalg.eigvalsh(self.covariance).clamp(min=0)
        shares = eigenvalues / eigenvalues.sum().clamp(min=1e-300)
        return float(torch.special.entr(shares).sum().exp())

    def update(self, vectors: Float[Tensor, "n D"]) -> None:
        """Take in more vectors.

        Raises:
            ValueError: A value is not finite.
        """
        if not len(vectors):
            return
        block = vectors.cpu().double()  # in this order: not every device has float64
        if not block.isfinite().all():
            raise ValueError("features hold NaN or infinite values")
        mean = block.mean(0)
        centred = block - mean
        delta = mean - self.mean
        total = self.count + len(block)
        weight = self.count * len(block) / total
        self._scatter += centred.T @ centred + weight * torch.outer(delta, delta)
        self.mean += delta * (len(block) / total)
        self.count = total


def moments_of(vectors: Float[ndarray, "n D"]) -> Moments:
    """Moments of vectors that are all at hand."""
    moments = Moments(vectors.shape[1])
    moments.update(torch.from_numpy(vectors))
    return moments


def moments_metrics(moments: Moments) -> dict[str, float]:
    """Overall standard deviation, the least and the largest of a dim, and the norm of the mean."""
    stds = moments.covariance.diagonal().sqrt()
    return {
        "std": moments.std,
        "std_min": float(stds.min()),
        "std_max": float(stds.max()),
        "mean_norm": float(moments.mean.norm()),
    }
