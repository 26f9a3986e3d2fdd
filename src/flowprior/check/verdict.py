"""One word for how latents compare with targets, and the reasons for it."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from flowprior.check.measures import (
    ALIGNED,
    aligned,
    fully_aligned,
    place_figures,
    reference_of,
    scale_of,
)
from flowprior.check.rank import Rank, rank_of
from flowprior.check.yardstick import Measure, Yardstick

Word = Literal["good", "narrow", "wide", "shifted", "collapsed", "low rank", "other shape"]

SPREAD = (0.8, 1.25)
"""Overall ratio of the standard deviations, latents over targets, between which they count as equal."""
MUCH = (0.7, 1.4)
"""Outside, the spread is named before a shift."""
DIM_SPREAD = (0.5, 2.0)
"""The same for a single dim, the overall ratio taken away."""
SHIFT = 0.25
"""Standard deviations between the means from which latents are elsewhere."""
MISSING = 0.15
"""Share of the targets' places that may be without latents."""
ON_TARGET = 0.8
"""Share of the fresh sets' precision from which latents lie where targets are."""
ALIKE = 0.7
"""Share of the fresh sets' precision and coverage from which shapes count as equal."""
TOLD_APART = 0.6
"""Accuracy of the two-sample test up to which shapes count as equal."""
LOCAL = 0.7
"""Share of the targets' distances between neighbours below which latents are narrow within their places."""
ALL_ALIKE = 1e-6
"""Share of the targets' standard deviation below which latents do not vary."""
SDS = 5.0
"""Standard deviations of the fresh sets beyond which a figure is none of chance."""


class Verdict(NamedTuple):
    """The word, and the findings behind it, the one that decided first.

    Attributes:
        word: What latents are.
        findings: Sentences with numbers; of good latents one that says so.
        rank: Directions that latents span.
    """

    word: Word
    findings: tuple[str, ...]
    rank: Rank | None


def judge(
    latents: Float[ndarray, "n d"], measures: Mapping[str, Measure], yardstick: Yardstick
) -> Verdict:
    """Name what latents are; the first of: low rank, collapsed, narrow or wide, shifted, other shape, good.

    Args:
        latents: All of them.
        measures: Of `Yardstick.measure`.
        yardstick: What they were measured by.
    """
    rank = rank_of(latents, yardstick.targets)
    found: list[tuple[Word, str]] = []
    lost = _lost(latents, rank, yardstick)
    if lost is not None:
        found.append(lost)
    elif (gone := _collapsed(latents, measures, yardstick)) is not None:
        found.append(gone)
    spread, much = _spread(measures["std_ratio"])
    shift = _shift(measures["shift"])
    found += [one for one in ((spread, shift) if much else (shift, spread)) if one is not None]
    shape = _shape(measures, moved=bool(found))
    if shape is not None:
        found.append(shape)
    if not found:
        return Verdict("good", ("a fresh sample of targets could look the same",), rank)
    return Verdict(found[0][0], tuple(sentence for _, sentence in found), rank)


def compare(
    latents: Float[ndarray, "n d"], yardstick: Yardstick
) -> tuple[Verdict, dict[str, Measure]]:
    """Measure latents and name what they are; without figures where they do not vary at all."""
    if not scale_of(latents).std > ALL_ALIKE * yardstick.reference.scale.std:
        most = "all" if not np.ptp(latents, axis=0).any() else "all but a few of"
        finding = f"{most} {len(latents)} latents are one and the same vector"
        return Verdict("collapsed", (finding,), None), {}
    measures = yardstick.measure(latents)
    return judge(latents, measures, yardstick), measures


def _lost(
    latents: ndarray, rank: Rank, yardstick: Yardstick
) -> tuple[Literal["low rank"], str] | None:
    """Directions are lost while what is left of the targets is everywhere met."""
    if not rank.lost:
        return None
    if rank.kept.shape[1]:
        reference = reference_of(yardstick.reference.vectors @ rank.kept)
        left = yardstick.cut(latents) @ rank.kept
        missing = (place_figures(x, reference)["missing"] for x in (left, aligned(left, reference)))
        if min(missing) > MISSING:
            return None  # modes are missing, and with them directions
    return (
        "low rank",
        f"in {rank.lost} of {rank.looked_at} directions in which targets vary, latents do not",
    )


def _collapsed(
    latents: ndarray, measures: Mapping[str, Measure], yardstick: Yardstick
) -> tuple[Literal["collapsed"], str] | None:
    """Where latents are, targets are, but not the other way round, whether or not scale and place are taken away.

    Nor does another spread along other axes explain it.
    """
    missing = min(measures[prefix + "missing"].value for prefix in ("", ALIGNED))
    on_target = any(
        measures[name].value >= ON_TARGET * measures[name].fresh
        for name in ("precision", ALIGNED + "precision")
    )
    fresh = max((measures[prefix + "missing"] for prefix in ("", ALIGNED)), key=lambda m: m.fresh)
    most = max(MISSING, fresh.fresh + SDS * fresh.sd)
    if not on_target or missing <= most:
        return None
    turned = fully_aligned(yardstick.cut(latents), yardstick.reference)
    missing = min(missing, place_figures(turned, yardstick.reference)["missing"])
    if missing <= most:
        return None
    return (
        "collapsed",
        f"next to no latents are near {missing:.0%} of the targets, whatever their scale and place",
    )


def _spread(ratio: Measure) -> tuple[tuple[Word, str] | None, bool]:
    low, high = SPREAD
    chance = SDS * ratio.sd
    sentence = f"the latents' standard deviation is {ratio.value:.3g} of the targets'"
    much = not MUCH[0] <= ratio.value <= MUCH[1]
    if ratio.value < min(low, ratio.fresh - chance):
        return ("narrow", sentence), much
    if ratio.value > max(high, ratio.fresh + chance):
        return ("wide", sentence), much
    return None, much


def _shift(shift: Measure) -> tuple[Literal["shifted"], str] | None:
    """A mean of few vectors is never quite that of the targets: what fresh sets have is taken away."""
    own = float(np.sqrt(max(0.0, shift.value**2 - shift.fresh**2)))
    if own <= SHIFT or shift.value <= shift.fresh + SDS * shift.sd:
        return None
    return (
        "shifted",
        f"the latents' mean is {own:.2g} standard deviations away from the targets'",
    )


def _shape(measures: Mapping[str, Measure], moved: bool) -> tuple[Word, str] | None:
    """Differences that no scale or place explains: as latents are, or after both are taken away.

    Latents that are on target as they are need no moving, which is never exact.
    """
    differences = _differences(measures, "")
    after = _differences(measures, ALIGNED) if differences else []
    if not after:
        return None
    prefix = ALIGNED if moved or len(after) < len(differences) else ""
    local, precision = (measures[prefix + name] for name in ("local_spread", "precision"))
    share = local.value / local.fresh
    if share < LOCAL and precision.value >= ON_TARGET * precision.fresh:
        return (
            "narrow",
            f"within the targets' places latents lie {share:.2g} times as far apart as targets do",
        )
    return "other shape", (after if prefix else differences)[0]


def _differences(measures: Mapping[str, Measure], prefix: str) -> list[str]:
    """Sentences on what differs in shape."""
    behind = " when scale and place are taken away" if prefix else ""
    found = []
    test = measures[prefix + "c2st_accuracy"]
    if test.value > max(TOLD_APART, test.fresh + SDS * test.sd):
        found.append(f"a classifier tells {test.value:.0%} of latents from targets{behind}")
    for name, words in (
        ("precision", "of latents lie where targets are"),
        ("coverage", "of targets have latents beside them"),
    ):
        one = measures[prefix + name]
        if one.value < min(ALIKE * one.fresh, one.fresh - SDS * one.sd):
            found.append(f"{one.value:.0%} {words}{behind}, of fresh targets {one.fresh:.0%}")
    ratio = measures["std_ratio"].value if prefix else 1.0
    least, most = measures["std_ratio_min"], measures["std_ratio_max"]
    if least.value / ratio < min(DIM_SPREAD[0], least.fresh - SDS * least.sd):
        found.append(f"in one dim the standard deviation is {least.value:.3g} of the targets'")
    if most.value / ratio > max(DIM_SPREAD[1], most.fresh + SDS * most.sd):
        found.append(f"in one dim the standard deviation is {most.value:.3g} of the targets'")
    return found
