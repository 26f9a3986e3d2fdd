"""What a linear classifier reads from latents."""

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray


def linear_probe_accuracy(
    train: Float[ndarray, "n f"],
    train_labels: Int[ndarray, " n"],
    held_out: Float[ndarray, "m f"],
    held_out_labels: Int[ndarray, " m"],
) -> float | None:
    """Held-out accuracy of multinomial logistic regression on standardised features; None where there is one class."""
    if len(np.unique(train_labels)) < 2:
        return None
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe.fit(np.asarray(train, dtype=np.float64), train_labels)
    return float(probe.score(np.asarray(held_out, dtype=np.float64), held_out_labels))
