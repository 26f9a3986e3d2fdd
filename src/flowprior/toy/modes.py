"""Points against the modes of a mixture that is known."""

import torch
from jaxtyping import Float
from torch import Tensor


def mode_report(
    points: Float[Tensor, "n d"], means: Float[Tensor, "k d"], std: float
) -> dict[str, float]:
    """How points spread within and over the modes of an isotropic mixture, each point counted to the nearest mode.

    Args:
        points: What to judge.
        means: Centres of the modes, further apart than a few `std`.
        std: Of every component.

    Returns:
        `within_mode_std_ratio`: root mean square over dims and occupied modes of the points'
        deviation from their mode's own mean, over `std`; 1 is a perfect spread, 0 a collapse.
        `min_mode_share` and `max_mode_share`: of the points, over all modes.

    Raises:
        ValueError: There are no points, or fewer than two in every mode.
    """
    if not len(points):
        raise ValueError("there are no points to count to modes")
    x, centres = points.double(), means.double()
    nearest = torch.cdist(x, centres).argmin(1)
    counts = torch.bincount(nearest, minlength=len(centres))
    own = torch.zeros_like(centres).index_add_(0, nearest, x) / counts.clamp(min=1).unsqueeze(-1)
    degrees = (len(x) - int((counts > 0).sum())) * x.shape[-1]
    if not degrees:
        raise ValueError("every mode holds at most one point: there is no spread to measure")
    variance = float((x - own[nearest]).square().sum() / degrees)
    shares = counts.double() / len(x)
    return {
        "within_mode_std_ratio": variance**0.5 / std,
        "min_mode_share": float(shares.min()),
        "max_mode_share": float(shares.max()),
    }
