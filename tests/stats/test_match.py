"""The report of two sets."""

import math

import numpy as np
import pytest

from flowprior.stats.coverage import (
    coverage_of,
    energy_distance,
    neighbour_log_distances,
    sliced_wasserstein,
)
from flowprior.stats.match import match_report

from .vectors import normal, report_of

KEYS = {
    *("forward_log_r5", "forward_log_r5_control", "reverse_log_r5", "reverse_log_r5_control"),
    *("precision", "recall", "recall_control", "density", "coverage", "coverage_control"),
    *("sliced_w2", "sliced_w2_control", "energy_distance", "energy_distance_control"),
    *("c2st_accuracy", "effective_rank", "effective_rank_targets", "num_latents", "num_targets"),
    *("std_ratio_min", "std_ratio_median", "std_ratio_max"),
}


def test_the_report_has_its_keys_and_plain_finite_floats() -> None:
    """What goes into a JSON file; the key of the neighbours carries k."""
    found = report_of(normal(200, 4))
    assert set(found) == KEYS
    assert all(type(value) is float and math.isfinite(value) for value in found.values())
    other = match_report(normal(30, 2), normal(30, 2, 1), normal(30, 2, 2), seed=0, k=3)
    assert set(other) == {key.replace("r5", "r3") for key in KEYS}


def test_the_report_holds_what_the_functions_give() -> None:
    """For sets that need no cut; order matters to the two-sample test alone."""
    latents, targets, control = 0.7 * normal(60, 3), normal(90, 3, 1), normal(60, 3, 2)
    found = match_report(latents, targets, control, seed=3)
    for vectors, suffix in ((latents, ""), (control, "_control")):
        cover = coverage_of(vectors, targets)
        forward, reverse = neighbour_log_distances(vectors, targets, 5)
        expected = {
            "recall": cover.recall,
            "coverage": cover.coverage,
            "forward_log_r5": forward,
            "reverse_log_r5": reverse,
            "sliced_w2": sliced_wasserstein(vectors, targets, seed=3),
            "energy_distance": energy_distance(vectors, targets),
        }
        for key, value in expected.items():
            # Sums in another order; float32 in the index.
            assert found[key + suffix] == pytest.approx(value, rel=1e-5, abs=1e-10), key
    cover = coverage_of(latents, targets)
    assert (found["precision"], found["density"]) == pytest.approx((cover.precision, cover.density))
    ratios = latents.std(axis=0) / targets.std(axis=0)
    keys = ("std_ratio_min", "std_ratio_median", "std_ratio_max")
    expected = (ratios.min(), np.median(ratios), ratios.max())
    assert [found[key] for key in keys] == pytest.approx(expected, rel=1e-12)


def test_the_ranks_are_those_of_the_sets() -> None:
    """A plane among four dims has rank 2 at most."""
    latents = normal(200, 4)
    latents[:, 2:] = 0
    found = report_of(latents)
    assert found["effective_rank"] == pytest.approx(2, abs=0.05)
    assert found["effective_rank_targets"] == pytest.approx(4, abs=0.1)
    assert found["std_ratio_min"] == 0


def test_a_control_in_place_of_the_latents_gives_the_control() -> None:
    """One set under both names has the same figures twice."""
    control = normal(100, 3, 2)
    found = match_report(control, normal(100, 3, 1), control, seed=0)
    for key in KEYS:
        if key.endswith("_control"):
            plain = found[key.removesuffix("_control")]
            assert plain == pytest.approx(found[key], rel=1e-5, abs=1e-10)


def test_latents_and_control_are_cut_to_one_size() -> None:
    """Coverage grows with the number of vectors: the control has to be as few as the latents, and the reverse."""
    targets = normal(300, 3, 1)
    few, many = normal(60, 3), normal(900, 3, 2)
    found = match_report(few, targets, many, seed=0)
    assert (found["num_latents"], found["num_targets"]) == (60, 300)
    assert found["coverage"] == pytest.approx(found["coverage_control"], abs=0.15)
    assert found["coverage_control"] < coverage_of(many, targets).coverage - 0.1
    swapped = match_report(many, targets, few, seed=0)
    assert swapped["num_latents"] == 60
    assert swapped["coverage"] == pytest.approx(swapped["coverage_control"], abs=0.15)


def test_no_set_is_larger_than_the_bound() -> None:
    """All three are cut, and by a permutation: vectors in order of size are not cut to the smallest."""
    latents, targets, control = (np.sort(normal(2000, 2, seed), axis=0) for seed in range(3))
    found = match_report(latents, targets, control, seed=0, max_vectors=100)
    assert (found["num_latents"], found["num_targets"]) == (100, 100)
    assert found["std_ratio_median"] == pytest.approx(1, abs=0.3)
    assert found["c2st_accuracy"] < 0.65


def test_the_report_depends_on_the_seed_alone() -> None:
    """To the bit; another seed makes another cut. Any whole number is a seed."""
    latents, targets, control = normal(150, 3), normal(150, 3, 1), normal(150, 3, 2)

    def report(seed: int) -> dict[str, float]:
        return match_report(latents, targets, control, seed=seed, max_vectors=60)

    first = report(2**40)
    np.random.rand(3)
    assert report(2**40) == first
    assert report(-1) != first


def test_a_point_mass_is_seen_in_every_figure() -> None:
    found = report_of(np.tile([2.0, 2.0, 2.0, 2.0], (200, 1)))
    assert found["recall"] == 0
    assert found["coverage"] < 0.5 * found["coverage_control"]
    assert found["effective_rank"] == 1
    assert found["std_ratio_max"] == 0
    assert found["c2st_accuracy"] > 0.95


def test_latents_on_modes_have_a_better_forward_distance_than_ideal_ones() -> None:
    """Four tight clusters where the targets have four wide ones."""
    centres = 4 * np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])[np.arange(200) % 4]
    targets, control, latents = (
        centres + width * normal(200, 2, i) for i, width in enumerate((1.0, 1.0, 0.1))
    )
    found = match_report(latents, targets, control, seed=0)
    assert found["forward_log_r5"] < found["forward_log_r5_control"]
    assert found["reverse_log_r5"] > found["reverse_log_r5_control"]
    assert found["recall"] < 0.5 * found["recall_control"]


@pytest.mark.parametrize("name", ["latents", "targets", "control"])
@pytest.mark.parametrize(("k", "need", "advice"), [(5, 20, "add vectors$"), (30, 31, "lower k")])
def test_the_report_says_how_many_vectors_it_needs(
    name: str, k: int, need: int, advice: str
) -> None:
    """Lowering k is advised where it would help."""
    sets = {key: normal(need, 2, i) for i, key in enumerate(("latents", "targets", "control"))}
    match_report(**sets, seed=0, k=k)
    sets[name] = sets[name][1:]
    with pytest.raises(ValueError, match=f"{name} holds {need - 1} .* least {need} .*{advice}"):
        match_report(**sets, seed=0, k=k)


def test_dims_in_which_targets_do_not_vary_have_no_ratio() -> None:
    """They are left out, whatever latents do there; targets that vary in none are an error."""
    latents, targets, control = (normal(40, 3, i) for i in range(3))
    targets[:, 1] = control[:, 1] = 0.1
    found = match_report(latents, targets, control, seed=0)
    assert found["std_ratio_max"] < 2
    with pytest.raises(ValueError, match="targets are all alike"):
        match_report(latents, np.full((40, 3), 0.1), control, seed=0)
