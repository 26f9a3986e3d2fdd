"""Do latents spread as the targets do, or sit on their modes? Two sets compared, and signs of collapse."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from flowprior.core.rng import derive_seed
from flowprior.stats.moments import Moments
from flowprior.stats.neighbours import NeighbourIndex
from flowprior.stats.two_sample import classifier_two_sample

BLOCK_VALUES = 1 << 22
"""Float64 values of a matrix of distances or projections that exist at a time: 32 MiB."""

MIN_VECTORS = 20
"""Vectors that `match_report` needs of each set whatever k is; the two-sample test's bound."""

COVERAGE_SHARE = 0.5
"""Below this share of the control's coverage latents look collapsed, unless they spread too far."""

ON_TARGET = 0.5
"""Below this precision, with recall as it should be, latents spread too far: that too covers little."""

RECALL_SHARE = 0.5
"""Below this share of the control's recall latents look collapsed."""

RANK_SHARE = 0.5
"""Below this share of the targets' effective rank latents look collapsed."""

STD_RATIO = 0.5
"""Below this median ratio of the standard deviations, latents over targets, latents look collapsed."""

NLL_GAP = -0.5
"""Below this gap of the mean NLL, latents minus held-out targets in nats, latents look collapsed."""


class Coverage(NamedTuple):
    """How two sets of vectors cover one another.

    Attributes:
        precision: Share of generated vectors within the ball of a real one.
        recall: Share of real vectors within the ball of a generated one.
        density: Mean number of real balls that a generated vector lies in, over k; may exceed 1.
        coverage: Share of real vectors whose ball contains a generated one.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def coverage_of(
    generated: Float[ndarray, "n d"], real: Float[ndarray, "m _d"], k: int = 5
) -> Coverage:
    """Precision and recall (Kynkäänniemi et al., 2019), density and coverage (Naeem et al., 2020, arXiv:2002.09797).

    The ball of a vector reaches to its k-th nearest neighbour within its own set; it is left out
    itself by its index, so that a copy of it is a neighbour at distance 0. Balls are open (distance
    < radius), as in the authors' package prdc 0.2. A vector with k copies or more in its own set
    therefore has an empty ball, which does not even contain itself: real sets of few distinct
    vectors are covered by nothing, and generated ones that are all alike recall nothing.

    Raises:
        ValueError: Fewer than k + 1 vectors in a set, different dims, or values that are not finite.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, found {k}")
    reason = f"a neighbour of rank k = {k} besides the vector itself; add vectors or lower k"
    _check({"generated": generated, "real": real}, k + 1, reason)
    found, _ = _compare(_cloud(generated, k), _cloud(real, k), k)
    return found


def sliced_wasserstein(
    a: Float[ndarray, "n d"],
    b: Float[ndarray, "m _d"],
    num_projections: int = 128,
    seed: int = 0,
) -> float:
    """Sliced 2-Wasserstein distance: root of the mean over random directions of the squared 1-D distance.

    In one dimension the distance is that of the quantile functions, integrated exactly also where
    the sets differ in size. In units of the vectors; a shift by c alone costs |c|^2 / d in the
    expected square. Bonneel et al., 2015.

    Raises:
        ValueError: An empty set, different dims, values that are not finite, or no projections.
    """
    if num_projections < 1:
        raise ValueError(f"num_projections must be at least 1, found {num_projections}")
    _check({"a": a, "b": b}, 1, "a distribution")
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    draw = np.random.default_rng(derive_seed(seed, "sliced_wasserstein"))
    directions = draw.normal(size=(num_projections, a.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    widths, in_a, in_b = _common_quantiles(len(a), len(b))
    at_once = max(1, BLOCK_VALUES // len(widths))
    total = 0.0
    for start in range(0, num_projections, at_once):
        some = directions[start : start + at_once]
        gaps = np.sort(some @ a.T, axis=1)[:, in_a] - np.sort(some @ b.T, axis=1)[:, in_b]
        total += float((gaps**2 @ widths).sum())
    return float(np.sqrt(total / num_projections))


def energy_distance(a: Float[ndarray, "n d"], b: Float[ndarray, "m _d"]) -> float:
    """Energy distance 2 E|a - b| - E|a - a'| - E|b - b'|, without a root (Székely and Rizzo, 2013).

    Within a set pairs of different indices alone count, so that the estimate is unbiased: for two
    samples of one distribution it lies around 0 and is slightly negative about half the time. In
    units of the vectors.

    Raises:
        ValueError: Fewer than two vectors in a set, different dims, or values that are not finite.
    """
    _check({"a": a, "b": b}, 2, "a pair within the set")
    one, two = _cloud(a, 1), _cloud(b, 1)
    _, between = _compare(one, two, 1)
    return _energy(one, two, between)


def neighbour_log_distances(
    latents: Float[ndarray, "n d"], targets: Float[ndarray, "m _d"], k: int
) -> tuple[float, float]:
    """Mean log r_k of latents to their k-th nearest target, and of targets to their k-th nearest latent.

    The first is the paper's proxy (§5.2, arXiv:2506.05240) and falls as latents collapse onto modes;
    the second rises with every mode that latents leave.

    Raises:
        ValueError: Fewer than k vectors in a set, different dims, or values that are not finite.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, found {k}")
    reason = f"a neighbour of rank k = {k}; add vectors or lower k"
    _check({"latents": latents, "targets": targets}, k, reason)
    forward = NeighbourIndex(targets).mean_log_distance(latents, (k,))[k]
    reverse = NeighbourIndex(latents).mean_log_distance(targets, (k,))[k]
    return forward, reverse


def match_report(
    latents: Float[ndarray, "n d"],
    targets: Float[ndarray, "m _d"],
    control: Float[ndarray, "c _d"],
    *,
    seed: int,
    k: int = 5,
    max_vectors: int = 5000,
) -> dict[str, float]:
    """How well latents match targets, beside what perfect latents would give.

    Perfect latents are a second independent sample of the targets' distribution, the control. It
    and the latents are cut to one size, all three sets to `max_vectors`, by seeded permutations.

    Args:
        latents: What is judged.
        targets: What latents should look like.
        control: More targets, none of them among `targets`.
        seed: Of the cuts, the directions of projection and the two-sample test.
        k: Neighbours that make a ball.
        max_vectors: The cost grows with its square.

    Returns:
        Under flat keys, those with `_control` being the control's in place of the latents':
        `forward_log_r<k>` and `reverse_log_r<k>` (`neighbour_log_distances`, nats), `precision`,
        `recall`, `density` and `coverage` (`coverage_of`), `sliced_w2`, `energy_distance`,
        `c2st_accuracy` (0.5 where latents and targets are not told apart), `effective_rank`,
        `effective_rank_targets`, `std_ratio_min`, `std_ratio_median`, `std_ratio_max` (of latents
        over targets, over the dims in which targets vary), `num_latents` and `num_targets` (after
        the cuts).

    Raises:
        ValueError: Too few vectors in a set, different dims, values that are not finite, or targets
            that do not vary.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, found {k}")
    need = max(k + 1, MIN_VECTORS)
    vectors = {"latents": latents, "targets": targets, "control": control}
    advice = " or lower k" if need > MIN_VECTORS else ""
    _check(vectors, need, f"k = {k} and the two-sample test; add vectors{advice}")
    if max_vectors < need:
        raise ValueError(f"max_vectors must be at least {need} for k = {k}, found {max_vectors}")
    size = min(len(latents), len(control), max_vectors)
    sizes = {"latents": size, "targets": min(len(targets), max_vectors), "control": size}
    latents, targets, control = (
        _subsample(vectors[name], sizes[name], seed, name) for name in sizes
    )
    ratios = _std_ratios(latents, targets)
    latent_cloud, target_cloud, control_cloud = (_cloud(x, k) for x in (latents, targets, control))
    report = {
        "effective_rank": _moments(latents).effective_rank,
        "effective_rank_targets": _moments(targets).effective_rank,
        "std_ratio_min": float(ratios.min()),
        "std_ratio_median": float(np.median(ratios)),
        "std_ratio_max": float(ratios.max()),
        "c2st_accuracy": classifier_two_sample(
            latents, targets, derive_seed(seed, "match_report", "c2st") % 2**32
        ),
        "num_latents": float(len(latents)),
        "num_targets": float(len(targets)),
    }
    for cloud, suffix in ((latent_cloud, ""), (control_cloud, "_control")):
        forward, reverse = neighbour_log_distances(cloud.vectors, targets, k)
        cover, between = _compare(cloud, target_cloud, k)
        report |= {
            f"forward_log_r{k}{suffix}": forward,
            f"reverse_log_r{k}{suffix}": reverse,
            f"recall{suffix}": cover.recall,
            f"coverage{suffix}": cover.coverage,
            f"sliced_w2{suffix}": sliced_wasserstein(cloud.vectors, targets, seed=seed),
            f"energy_distance{suffix}": _energy(cloud, target_cloud, between),
        }
        if not suffix:
            report |= {"precision": cover.precision, "density": cover.density}
    return report


def collapse_signs(report: Mapping[str, float], nll_gap: float | None = None) -> list[str]:
    """Why latents look collapsed, a readable reason each; empty when they do not.

    Args:
        report: Of `match_report`.
        nll_gap: Mean NLL of the latents minus that of held-out targets, nats per vector.

    Raises:
        ValueError: `nll_gap` is NaN.
    """
    if nll_gap is not None and np.isnan(nll_gap):
        raise ValueError(
            "nll_gap is NaN, which says neither that latents collapse nor the contrary"
        )
    spread_too_far = (
        report["precision"] < ON_TARGET
        and report["recall"] >= RECALL_SHARE * report["recall_control"]
    )
    signs = []
    for name, share, reference, whose in (
        ("coverage", COVERAGE_SHARE, "coverage_control", "a fresh sample of targets"),
        ("recall", RECALL_SHARE, "recall_control", "a fresh sample of targets"),
        ("effective_rank", RANK_SHARE, "effective_rank_targets", "the targets"),
    ):
        if name == "coverage" and spread_too_far:
            continue
        if report[name] < share * report[reference]:
            signs.append(
                f"{name} {report[name]:.3g} is below {share:g} of the {report[reference]:.3g} "
                f"of {whose}"
            )
    if report["std_ratio_median"] < STD_RATIO:
        signs.append(
            "the median ratio of the standard deviations, latents over targets, "
            f"{report['std_ratio_median']:.3g}, is below {STD_RATIO:g}"
        )
    if nll_gap is not None and nll_gap < NLL_GAP:
        signs.append(
            f"the mean NLL of latents minus that of held-out targets, {nll_gap:.3g} nats, is below "
            f"{NLL_GAP:g}: latents are denser than the targets themselves"
        )
    return signs


class _Cloud(NamedTuple):
    """A set with what its own distances say: radii to the k-th neighbours, mean over pairs."""

    vectors: ndarray
    radii: ndarray
    mean_distance: float


def _cloud(vectors: ndarray, k: int) -> _Cloud:
    vectors = np.ascontiguousarray(vectors, dtype=np.float64)
    n, total, radii = len(vectors), 0.0, np.empty(len(vectors))
    for rows, distances in _distances(vectors, vectors):
        total += float(distances.sum())
        distances[np.arange(len(distances)), np.arange(n)[rows]] = np.inf
        distances.partition(k - 1, axis=1)
        radii[rows] = distances[:, k - 1]
    return _Cloud(vectors, radii, total / (n * (n - 1)))


def _compare(generated: _Cloud, real: _Cloud, k: int) -> tuple[Coverage, float]:
    """Coverage and the mean distance between the sets, from one pass over all pairs."""
    n, m = len(generated.vectors), len(real.vectors)
    precise, contained, total = 0, 0, 0.0
    recalled, covered = np.zeros(m, dtype=bool), np.zeros(m, dtype=bool)
    for rows, distances in _distances(generated.vectors, real.vectors):
        total += float(distances.sum())
        in_real = distances < real.radii
        precise += int(in_real.any(axis=1).sum())
        contained += int(in_real.sum())
        covered |= in_real.any(axis=0)
        recalled |= (distances < generated.radii[rows, None]).any(axis=0)
    found = Coverage(
        precise / n, float(recalled.mean()), contained / (k * n), float(covered.mean())
    )
    return found, total / (n * m)


def _energy(one: _Cloud, two: _Cloud, between: float) -> float:
    return 2 * between - one.mean_distance - two.mean_distance


def _distances(a: ndarray, b: ndarray) -> Iterator[tuple[slice, ndarray]]:
    """Distances of some rows of `a` to all of `b`; of differences, so that copies are at exactly 0."""
    from scipy.spatial.distance import cdist

    at_once = max(1, BLOCK_VALUES // len(b))
    for start in range(0, len(a), at_once):
        rows = slice(start, start + at_once)
        yield rows, cdist(a[rows], b)


def _common_quantiles(n: int, m: int) -> tuple[ndarray, ndarray, ndarray]:
    """Widths of the steps that the quantile functions of n and of m values share, and the ranks there."""
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    return np.diff(ends, prepend=0) / (n * m), (ends - 1) // m, (ends - 1) // n


def _std_ratios(latents: ndarray, targets: ndarray) -> ndarray:
    varied = np.ptp(targets, axis=0) > 0
    if not varied.any():
        raise ValueError("targets are all alike: there is no spread that latents could have")
    ratios = (
        _moments(latents).covariance.diagonal() / _moments(targets).covariance.diagonal()
    ).sqrt()
    return np.asarray(ratios.numpy()[varied])


def _moments(vectors: ndarray) -> Moments:
    moments = Moments(vectors.shape[1])
    moments.update(torch.from_numpy(vectors))
    return moments


def _subsample(vectors: ndarray, size: int, seed: int, name: str) -> ndarray:
    draw = np.random.default_rng(derive_seed(seed, "match_report", name))
    return np.asarray(vectors[draw.permutation(len(vectors))[:size]], dtype=np.float64)


def _check(sets: Mapping[str, ndarray], need: int, reason: str) -> None:
    for name, vectors in sets.items():
        if len(vectors) < need:
            raise ValueError(
                f"{name} holds {len(vectors)} vectors where at least {need} are needed, for {reason}"
            )
    dims = {name: vectors.shape[1] for name, vectors in sets.items()}
    if len(set(dims.values())) > 1:
        found = ", ".join(f"{name} {dim}" for name, dim in dims.items())
        raise ValueError(f"sets of one dim are compared, found {found}; project them alike first")
    for name, vectors in sets.items():
        if not np.isfinite(vectors).all():
            bad = int((~np.isfinite(vectors)).any(axis=1).sum())
            raise ValueError(
                f"{bad} of {len(vectors)} vectors of {name} hold NaN or infinite values; "
                "leave them out, or look where they come from"
            )
