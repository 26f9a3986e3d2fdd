"""Are two sets of vectors from one distribution? The classifier two-sample test."""

from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor
from torch.nn import functional as F

from flowprior.core import rng

LEAST = 20
"""Vectors that the test needs of each set."""
WIDTH = 64
LR = 2e-3
WEIGHT_DECAY = 1e-2
BATCH = 256
EPOCHS = 60
PATIENCE = 15
"""Epochs without better answers on the part that a fold holds back, after which it stops."""


def classifier_two_sample(a: Float[ndarray, "n d"], b: Float[ndarray, "m d"], seed: int) -> float:
    """Two-fold accuracy of a small network that tells the sets apart; 0.5 where it cannot.

    Lopez-Paz and Oquab, 2017, arXiv:1610.06545. The larger set is cut to the size of the smaller. The network sees the
    channels, standardised, their absolute values and the norm, and each fold stops where a fifth of what it learns
    from, held back, says so. For sets that are alike the result's standard deviation is about 0.5 / sqrt(2 n).

    Raises:
        ValueError: Fewer than 20 vectors in one of them, or values that are not finite.
    """
    n = min(len(a), len(b))
    if n < LEAST:
        raise ValueError(
            f"a two-sample test needs at least {LEAST} vectors of each, found {len(a)} and {len(b)}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a set holds NaN or infinite values, which no test can compare")
    with torch.inference_mode(False), torch.enable_grad(), rng.plain_defaults():
        return _accuracy(a[:n], b[:n], rng.generator(seed, "c2st"))


def _accuracy(a: ndarray, b: ndarray, draw: torch.Generator) -> float:
    """Of both folds, which are learned from side by side: the first axis is the fold."""
    n = len(a)
    both = np.concatenate([a, b]).astype(np.float64)
    spread = both.std(0)
    scaled = (both - both.mean(0)) / np.where(spread > 0, spread, 1.0)
    norms = np.linalg.norm(scaled, axis=1, keepdims=True) / scaled.shape[1] ** 0.5
    x = torch.from_numpy(np.concatenate([scaled, np.abs(scaled), norms], 1).astype(np.float32))
    y = torch.arange(2 * n).ge(n).float()
    orders = [torch.randperm(n, generator=draw) + start for start in (0, n)]
    half, held = n // 2, max(1, n // 10)  # held back: of each set, from each half
    folds = [torch.cat([order[:half] for order in orders])]
    folds.append(torch.cat([order[half : 2 * half] for order in orders]))
    inner = torch.arange(2 * half).remainder(half) >= held
    learn, stop = (torch.stack([fold[part] for fold in folds]) for part in (inner, ~inner))
    test = torch.stack(folds[::-1])
    best = _train(x[learn], y[learn], x[stop], y[stop], draw)
    return float(((_logits(best, x[test]) > 0) == y[test].bool()).double().mean())


def _train(
    x: Tensor, y: Tensor, held_x: Tensor, held_y: Tensor, draw: torch.Generator
) -> list[Tensor]:
    """The weights of each fold at the epoch where they answered best on what it holds back; the loss breaks ties."""
    num_folds, size, dim = x.shape
    sizes = [dim, WIDTH, WIDTH, 1]
    weights: list[Tensor] = []
    for inputs, outputs in pairwise(sizes):
        scale = (2 / inputs) ** 0.5
        weights.append(scale * torch.randn(num_folds, inputs, outputs, generator=draw))
        weights.append(torch.zeros(num_folds, 1, outputs))
    for weight in weights:
        weight.requires_grad_(True)
    decay = [{"params": weights[0::2], "weight_decay": WEIGHT_DECAY}]
    optimizer = torch.optim.AdamW(
        [*decay, {"params": weights[1::2], "weight_decay": 0.0}], lr=LR, fused=True
    )
    best = [weight.detach().clone() for weight in weights]
    least, since = torch.full((num_folds,), float("inf")), 0
    for _ in range(EPOCHS):
        rows = torch.randperm(size, generator=draw)
        for batch in rows.split(BATCH):
            loss = _losses(weights, x[:, batch], y[:, batch]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            wrong = ((_logits(weights, held_x) > 0) != held_y.bool()).float().mean(1)
            wrong += 1e-3 * _losses(weights, held_x, held_y)
            better = wrong < least
            least = torch.where(better, wrong, least)
            for kept, weight in zip(best, weights, strict=True):
                kept[better] = weight[better]
        since = 0 if bool(better.any()) else since + 1
        if since >= PATIENCE:
            break
    return best


def _logits(weights: list[Tensor], x: Tensor) -> Tensor:
    h = x
    for matrix, bias in zip(weights[0:-2:2], weights[1:-2:2], strict=True):
        h = F.relu(torch.baddbmm(bias, h, matrix))
    return torch.baddbmm(weights[-1], h, weights[-2]).squeeze(-1)


def _losses(weights: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Of each fold, the mean over its vectors."""
    return F.binary_cross_entropy_with_logits(_logits(weights, x), y, reduction="none").mean(1)
