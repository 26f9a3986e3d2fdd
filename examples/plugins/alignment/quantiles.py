"""An objective of one's own: the sorted values of each channel should be those of as many targets."""

from torch import Tensor

from flowprior.alignment.objective import Material, Sample
from flowprior.core.codes import Codes
from flowprior.core.rng import Draw


class QuantileMatching:
    """Squared 2-Wasserstein distance of each channel by itself, a mean over channels and quantiles.

    Args:
        targets: Draws targets [n, d].
        power: Of the differences; 2 is the squared distance.
    """

    def __init__(self, targets: Sample, power: float = 2.0) -> None:
        self.targets = targets
        self.power = power

    @classmethod
    def build(cls, material: Material, **options: float) -> "QuantileMatching":
        """What the pipeline calls; `options` are those of `align.options`."""
        return cls(material.targets, **options)

    def __call__(self, codes: Codes, draw: Draw) -> Tensor:
        """The loss of latents [b, n, d]; `draw.gather` brings those of all ranks together."""
        latents = draw.gather(codes.latents.float()).flatten(0, -2)
        targets = self.targets(len(latents), draw.generator).to(latents)
        difference = latents.sort(0).values - targets.sort(0).values
        return difference.abs().pow(self.power).mean()
