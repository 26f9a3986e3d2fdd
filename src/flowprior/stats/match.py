"""How two sets of vectors match: latents and targets, in one report."""

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from flowprior.core.rng import derive_seed
from flowprior.stats.clouds import (
    MIN_VECTORS,
    check_sets,
    cloud_of,
    compare_clouds,
    energy_of,
    subsample,
)
from flowprior.stats.coverage import neighbour_log_distances, sliced_wasserstein
from flowprior.stats.moments import moments_of
from flowprior.stats.two_sample import classifier_two_sample


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
    check_sets(vectors, need, f"k = {k} and the two-sample test; add vectors{advice}")
    if max_vectors < need:
        raise ValueError(f"max_vectors must be at least {need} for k = {k}, found {max_vectors}")
    size = min(len(latents), len(control), max_vectors)
    sizes = {"latents": size, "targets": min(len(targets), max_vectors), "control": size}
    latents, targets, control = (
        subsample(vectors[name], sizes[name], seed, name) for name in sizes
    )
    ratios = _std_ratios(latents, targets)
    latent_cloud, target_cloud, control_cloud = (
        cloud_of(x, k) for x in (latents, targets, control)
    )
    report = {
        "effective_rank": moments_of(latents).effective_rank,
        "effective_rank_targets": moments_of(targets).effective_rank,
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
        cover, between = compare_clouds(cloud, target_cloud, k)
        report |= {
            f"forward_log_r{k}{suffix}": forward,
            f"reverse_log_r{k}{suffix}": reverse,
            f"recall{suffix}": cover.recall,
            f"coverage{suffix}": cover.coverage,
            f"sliced_w2{suffix}": sliced_wasserstein(cloud.vectors, targets, seed=seed),
            f"energy_distance{suffix}": energy_of(cloud, target_cloud, between),
        }
        if not suffix:
            report |= {"precision": cover.precision, "density": cover.density}
    return report


def _std_ratios(latents: ndarray, targets: ndarray) -> ndarray:
    varied = np.ptp(targets, axis=0) > 0
    if not varied.any():
        raise ValueError("targets are all alike: there is no spread that latents could have")
    ratios = (
        moments_of(latents).covariance.diagonal() / moments_of(targets).covariance.diagonal()
    ).sqrt()
    return np.asarray(ratios.numpy()[varied])
