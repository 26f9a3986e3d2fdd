"""What a check found, to be printed, written, drawn."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy import ndarray

from flowprior.check.verdict import Verdict, Word
from flowprior.check.yardstick import Measure
from flowprior.core.extras import missing_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {
    "std_ratio": "standard deviation over the targets'",
    "std_ratio_min": "the least of a dim",
    "std_ratio_max": "the largest of a dim",
    "shift": "distance of the means, in standard deviations",
    "effective_rank": "effective rank",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "missing": "targets without latents around",
    "local_spread": "distances to neighbours over the targets'",
    "energy_distance": "energy distance",
    "sliced_w2": "sliced 2-Wasserstein distance",
    "c2st_accuracy": "two-sample test, accuracy",
    "aligned_c2st_accuracy": "the same, scale and place taken away",
    "nll_gap_nats": "negative log-density minus the targets', nats",
    "alignment_loss": "alignment loss",
}
"""Of the figures that people are shown, in their order."""
ADVICE: dict[Word, str] = {
    "good": "nothing to change",
    "narrow": "objectives that compare distributions (dmd, sliced_w2, mmd) keep the spread; so does a smaller weight",
    "wide": "a larger weight or a longer training draws them in",
    "shifted": "a larger weight or a longer training moves them; look for a bias or a norm behind the encoder",
    "collapsed": "an objective that compares distributions (dmd, sliced_w2, mmd), or a smaller weight",
    "low rank": "a prior of fewer dims, or an encoder whose last layer does not drop any",
    "other shape": "a larger weight or a longer training; more steps for the prior if its own verdict is not good",
}
DOTS = 800
"""Of each set in the picture."""
AXES = 64
"""Principal components in the picture, at most."""


class Picture(NamedTuple):
    """Latents and targets in the plane of the targets' first two principal components, and their variances.

    Attributes:
        latents: [n, 2], or [n, 1] in one dim.
        targets: As the latents.
        latent_stds: Standard deviations along the targets' principal components.
        target_stds: The same of the targets, descending.
    """

    latents: ndarray
    targets: ndarray
    latent_stds: ndarray
    target_stds: ndarray

    @classmethod
    def of(cls, latents: ndarray, targets: ndarray) -> "Picture":
        """Of both sets."""
        mean = targets.mean(0)
        dim = targets.shape[1]
        axes = np.linalg.eigh(np.cov(targets, rowvar=False).reshape(dim, dim))[1].T[::-1][:AXES]
        one, two = ((x - mean) @ axes.T for x in (latents, targets))
        return cls(one[:DOTS, :2], two[:DOTS, :2], one.std(0), two.std(0))


class LatentCheck:
    """How latents compare with a prior's targets, and one word for it; made by `FlowPrior.check`.

    Print it, or use it as `check.good`.

    Attributes:
        verdict: good, narrow, wide, shifted, collapsed, low rank or other shape.
        findings: Sentences with the numbers behind it, the deciding one first.
        measures: Every figure by its key, with what as many fresh targets get.
        num_latents: How many there were.
        num_compared: To how many they were cut.
        num_targets: How many they were compared with.
        source: What the targets are.
    """

    def __init__(
        self,
        verdict: Verdict,
        measures: Mapping[str, Measure],
        picture: Picture,
        source: str,
        num_latents: int,
        num_compared: int,
        num_targets: int,
    ) -> None:
        self.verdict: Word = verdict.word
        self.findings = verdict.findings
        self.measures = dict(measures)
        self.picture = picture
        self.source = source
        self.num_latents = num_latents
        self.num_compared = min(num_compared, num_latents)
        self.num_targets = num_targets

    @property
    def good(self) -> bool:
        """Whether fresh targets could look the same."""
        return self.verdict == "good"

    @property
    def advice(self) -> str:
        """What tends to help."""
        return ADVICE[self.verdict]

    @property
    def compared(self) -> str:
        """What was compared, in words."""
        return (
            f"{self.num_compared} of {self.num_latents} latents, beside as many of {self.num_targets} targets "
            f"({self.source})"
        )

    def rows(self) -> list[tuple[str, Measure, bool]]:
        """What people are shown: the name of each figure, the figure, whether it lies outside its interval."""
        shown = []
        for key, name in NAMES.items():
            if key in self.measures:
                one = self.measures[key]
                low, high = one.interval
                shown.append((name, one, not low <= one.value <= high))
        return shown

    def __str__(self) -> str:
        lines = [f"{self.verdict}: {'; '.join(self.findings)}", f"  what helps: {self.advice}"]
        if self.measures:
            width = max(map(len, NAMES.values()))
            lines.append(f"  {'':{width}}  {'latents':>8}  {'targets':>8}  99% of fresh targets")
        for name, one, outside in self.rows():
            low, high = one.interval
            mark = "  *" if outside else ""
            lines.append(
                f"  {name:{width}}  {one.value:8.3f}  {one.fresh:8.3f}  {low:.3f} to {high:.3f}{mark}"
            )
        stars = (
            ["  * outside of where 99 in 100 sets of fresh targets lie"] if self.measures else []
        )
        return "\n".join([*lines, *stars, f"  {self.compared}"])

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """Everything but the picture, ready for JSON."""
        measures = {
            key: {
                name: value if np.isfinite(value) else None
                for name, value in (
                    ("value", one.value),
                    ("fresh", one.fresh),
                    ("low", one.interval[0]),
                    ("high", one.interval[1]),
                )
            }
            for key, one in self.measures.items()
        }
        return {
            "verdict": self.verdict,
            "findings": list(self.findings),
            "num_latents": self.num_latents,
            "num_compared": self.num_compared,
            "num_targets": self.num_targets,
            "targets": self.source,
            "measures": measures,
        }

    def to_html(self, path: str | Path | None = None) -> str:
        """A page that needs nothing else; written to `path` too, if there is one."""
        from flowprior.check.page import page_of
        from flowprior.core.io import write_atomic

        page = page_of(self)
        if path is not None:
            write_atomic(Path(path).expanduser(), page.encode())
        return page

    def plot(self) -> "Figure":
        """A matplotlib figure: latents over targets, and their spread along the targets' principal components.

        Raises:
            ModuleNotFoundError: Without matplotlib; says which extra brings it.
        """
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(missing_extra(error), name=error.name) from None
        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        plane, spread = figure.subplots(1, 2)
        sets = ((self.picture.targets, "targets", "#9aa4af"), (self.picture.latents, "latents", "#c2500a"))  # fmt: skip
        for points, name, colour in sets:
            x, y = points[:, 0], points[:, -1]
            plane.plot(x, y, ".", markersize=3, color=colour, label=name, alpha=0.7)
        plane.set(xlabel="first principal component", ylabel="second")
        components = np.arange(1, len(self.picture.target_stds) + 1)
        for stds, (_, name, colour) in zip(
            (self.picture.target_stds, self.picture.latent_stds), sets, strict=True
        ):
            spread.plot(components, stds, "o-", markersize=3, color=colour, label=name)
        spread.set(xlabel="principal component of the targets", ylabel="standard deviation")
        spread.set_ylim(bottom=0)
        for axis in (plane, spread):
            axis.spines[["top", "right"]].set_visible(False)
        spread.legend(frameon=False)
        figure.suptitle(f"{self.verdict}: {self.findings[0]}", fontsize=10)
        return figure
