"""Latents of a known kind are called by their name, and fresh targets good."""

import numpy as np
import pytest
from numpy import ndarray

from flowprior.check.verdict import compare
from flowprior.check.yardstick import Yardstick, enough, sizes

from .calibration import Kind, kinds, latents_of

KINDS = {kind.name: kind for kind in kinds()}
MODES = [kind for kind in KINDS.values() if kind.few is not None]


def targets_of(kind: Kind, n: int = 6000) -> ndarray:
    """What the prior would keep."""
    return kind.draw(np.random.default_rng(1), n)


@pytest.fixture(scope="module", params=KINDS)
def measured(request: pytest.FixtureRequest) -> tuple[Kind, Yardstick]:
    kind = KINDS[request.param]
    return kind, Yardstick(targets_of(kind, 13_000), 1000, 0)


def test_each_departure_has_its_name(measured: tuple[Kind, Yardstick]) -> None:
    """And the sample itself none; how often, in `metrics/check_calibration.json`."""
    kind, yardstick = measured
    rng = np.random.default_rng(0)
    verdict, _ = compare(kind.draw(rng, 1000), yardstick)
    assert verdict.word == "good"
    for what, wanted, latents in latents_of(kind, rng):
        verdict, _ = compare(latents, yardstick)
        assert verdict.word == wanted, (what, verdict)


@pytest.fixture(scope="module")
def gaussian() -> Yardstick:
    return Yardstick(np.random.default_rng(1).normal(size=(4000, 4)), 500, 0)


def sample(n: int = 500, dim: int = 4, seed: int = 5) -> ndarray:
    """Standard normal."""
    return np.random.default_rng(seed).normal(size=(n, dim))


@pytest.mark.parametrize(
    ("latents", "word", "sentence"),
    [
        (0.3 * sample(), "narrow", "standard deviation is 0."),
        (1.3 * sample() + 3, "shifted", "standard deviations away"),
        (0.3 * sample() + 3, "narrow", "standard deviation is 0."),
        (np.full((500, 4), 2.0), "collapsed", "all 500 latents are one and the same vector"),
        (sample() * [1, 1, 1, 1e-3], "low rank", "in 1 of 4 directions"),
        (sample() * [0.9, 0.9, 0.9, 1.7], "other shape", "a classifier tells"),
    ],
    ids=["narrow", "place first", "spread first", "one vector", "a dead channel", "one wide dim"],
)
def test_what_decides_comes_first_and_has_its_number(
    gaussian: Yardstick, latents: ndarray, word: str, sentence: str
) -> None:
    verdict, _ = compare(latents, gaussian)
    assert verdict.word == word
    assert sentence in verdict.findings[0]


def test_a_gaussian_that_lacks_the_targets_long_axes_is_not_collapsed() -> None:
    """A fifth of the targets is far from all latents, and yet no mode is missing."""
    rng = np.random.default_rng(0)
    spreads = np.array([6.0, 4, 3, 1, 1, 1, 1, 1])
    yardstick = Yardstick(rng.normal(size=(3000, 8)) * spreads, 640, 0)
    verdict, measures = compare(1.5 * rng.normal(size=(640, 8)), yardstick)
    assert measures["missing"].value > 0.15
    assert verdict.word == "narrow"


def test_modes_of_which_each_is_met_but_narrowly_are_narrow() -> None:
    """What the paper's loss does: every mode has its latents, and none its spread."""
    kind = KINDS["ten modes in 2 dims"]
    yardstick = Yardstick(targets_of(kind, 13_000), 1000, 0)
    centres = np.random.default_rng(2).normal(size=(10, 2))
    rng = np.random.default_rng(0)
    latents = centres[rng.integers(0, 10, 1000)] + 0.03 * rng.normal(size=(1000, 2))
    verdict, _ = compare(latents, yardstick)
    assert verdict.word == "narrow"
    assert "within the targets' places" in verdict.findings[0]


@pytest.mark.parametrize("kind", MODES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_units_do_not_matter(kind: Kind, scale: float) -> None:
    """Targets and latents in other units have the same verdict and figures without unit."""
    targets = targets_of(kind, 3000)
    latents = targets_of(kind, 3300)[3000:]
    plain, scaled = (
        compare(factor * latents, Yardstick(factor * targets, 300, 0)) for factor in (1.0, scale)
    )
    assert plain[0].word == scaled[0].word == "good"
    assert plain[1]["coverage"].value == pytest.approx(scaled[1]["coverage"].value, abs=0.01)
    assert plain[1]["std_ratio"].value == pytest.approx(scaled[1]["std_ratio"].value)


def test_few_targets_that_do_not_vary_or_are_too_few_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least 100 targets and 50 latents, found 99 and 500"):
        Yardstick(sample(99), 500, 0)
    with pytest.raises(ValueError, match="found 4000 and 49"):
        Yardstick(sample(4000), 49, 0)
    with pytest.raises(ValueError, match="targets are all alike"):
        Yardstick(np.ones((200, 3)), 100, 0)
    assert enough(100, 50)


def test_sets_are_disjoint_from_the_reference_and_of_one_size() -> None:
    """Many targets give sets that share nothing with one another; few give sets that differ."""
    for m, n, size in ((20_000, 5000, 1000), (400, 5000, 100), (100, 50, 25)):
        targets = np.arange(2.0 * m).reshape(m, 2)
        yardstick = Yardstick(targets, n, 0)
        assert sizes(m, n, 2) == (size, len(yardstick.reference.vectors))
        reference = set(yardstick.reference.vectors[:, 0])
        sets = [set(control[:, 0]) for control in yardstick.controls]
        assert all(len(one) == size and not one & reference for one in sets)
        assert len({frozenset(one) for one in sets}) == len(sets)
        if m == 20_000:
            assert len(set.union(*sets)) == size * len(sets)


def test_one_dim_is_enough() -> None:
    rng = np.random.default_rng(0)
    yardstick = Yardstick(rng.normal(size=(2000, 1)), 200, 0)
    assert compare(rng.normal(size=(200, 1)), yardstick)[0].word == "good"
    assert compare(0.4 * rng.normal(size=(200, 1)), yardstick)[0].word == "narrow"


def test_more_dims_than_latents_are_judged_on_those_that_can_be_told() -> None:
    """Rank is looked for in a quarter as many directions as there are latents."""
    rng = np.random.default_rng(0)
    yardstick = Yardstick(rng.normal(size=(2000, 200)), 120, 0)
    verdict, _ = compare(rng.normal(size=(120, 200)), yardstick)
    assert verdict.word == "good"
    assert verdict.rank is not None
    assert verdict.rank.looked_at == 30
