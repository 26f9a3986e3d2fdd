"""Are two sets of vectors from one distribution? The classifier two-sample test."""

import numpy as np
from jaxtyping import Float
from numpy import ndarray


def classifier_two_sample(a: Float[ndarray, "n d"], b: Float[ndarray, "m d"], seed: int) -> float:
    """Two-fold accuracy of a small network that tells the sets apart; 0.5 where it cannot.

    Lopez-Paz and Oquab, 2017. The larger set is cut to the size of the smaller.

    Raises:
        ValueError: Fewer than 20 vectors in one of them.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n = min(len(a), len(b))
    if n < 20:
        raise ValueError(
            f"a two-sample test needs at least 20 vectors of each, found {len(a)} and {len(b)}"
        )
    x = np.concatenate([a[:n], b[:n]]).astype(np.float64)
    y = np.repeat([0, 1], n)
    network = MLPClassifier((64, 64), max_iter=60, early_stopping=True, random_state=seed)
    folds = StratifiedKFold(2, shuffle=True, random_state=seed)
    scores = cross_val_score(make_pipeline(StandardScaler(), network), x, y, cv=folds)
    return float(scores.mean())
