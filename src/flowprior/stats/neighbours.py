"""Distances to the k nearest neighbours, the paper's proxy for the negative log-density."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

FLOOR = 1e-12
"""Squared distances below it count as it, so that a copy does not give minus infinity."""


class NeighbourIndex:
    """Target vectors, indexed once for exact search by faiss.

    Args:
        targets: [m, d].
    """

    def __init__(self, targets: Float[ndarray, "m d"]) -> None:
        import faiss

        vectors = np.ascontiguousarray(targets, dtype=np.float32)
        self._index = faiss.IndexFlatL2(vectors.shape[1])
        self._index.add(vectors)

    def squared_distances(self, queries: Float[ndarray, "n d"], k: int) -> Float[ndarray, "n k"]:
        """Squared Euclidean distances to the k nearest targets, ascending.

        Raises:
            ValueError: There are fewer than k targets.
        """
        if not 1 <= k <= self._index.ntotal:
            raise ValueError(
                f"k must lie between 1 and the {self._index.ntotal} targets, found {k}"
            )
        found, _ = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
        return np.asarray(found)

    def mean_log_distance(
        self, queries: Float[ndarray, "n d"], ks: Sequence[int]
    ) -> dict[int, float]:
        """Mean over the queries of log r_k for each k; §5.2, arXiv:2506.05240.

        -log p(y) is estimated by d log r_k(y) + const, r_k the distance to the k-th nearest target.
        """
        squared = self.squared_distances(queries, max(ks)).astype(np.float64)
        logs = 0.5 * np.log(np.maximum(squared, FLOOR))
        return {k: float(logs[:, k - 1].mean()) for k in ks}
