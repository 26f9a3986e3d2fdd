"""What pulls the latents towards the prior: objectives behind one face."""

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from flowprior.flow.losses import alignment_loss
from flowprior.flow.path import stratified_times
from flowprior.models.bottleneck import Codes
from flowprior.prior import FlowPrior

ObjectiveName = Literal["none", "flow_prior", "kl"]


class Draw(NamedTuple):
    """Randomness for the global batch, so that a result does not depend on the number of ranks.

    Attributes:
        generator: Equal on all ranks.
        batch_images: Images of the global batch.
        share: `share(draws, dim)` gives this rank's part of what was drawn for all, on its device.
    """

    generator: torch.Generator
    batch_images: int
    share: Callable[[Tensor, int], Tensor]


@runtime_checkable
class Objective(Protocol):
    """A loss of this rank's latents, a mean over vectors and dims; it is weighted by `align.weight`."""

    def __call__(self, codes: Codes, draw: Draw) -> Tensor: ...


class Unaligned:
    """No pull at all: the paper's AE row."""

    def __call__(self, codes: Codes, draw: Draw) -> Tensor:
        return codes.latents.new_zeros(())


class FlowAlignment:
    """The paper's alignment loss, Eq. (5), arXiv:2506.05240; the tokens of an image share each draw's time.

    Args:
        prior: The frozen prior.
        num_draws: Draws of noise and time for each latent.
    """

    def __init__(self, prior: FlowPrior, num_draws: int) -> None:
        self.prior = prior
        self.num_draws = num_draws

    def __call__(self, codes: Codes, draw: Draw) -> Tensor:
        latents = codes.latents.float()
        if latents.shape[-1] != self.prior.dim:
            raise ValueError(
                f"latents have {latents.shape[-1]} channels, the flow prior models {self.prior.dim}; "
                "run `dvc repro train_flow` after changing project.dim"
            )
        k, images = self.num_draws, draw.batch_images
        t = stratified_times(k * images, torch.empty(()), draw.generator).view(k, images, 1)
        noise = torch.randn(k, images, *latents.shape[1:], generator=draw.generator)
        return alignment_loss(
            self.prior.velocity,
            latents.expand(k, *latents.shape),
            draw.share(noise, 1),
            draw.share(t, 1),
        ).mean()


class GaussianKL:
    """KL to N(0, I), mean over dims: of each posterior, or of N(batch mean, batch variance) without one.

    The moments of the latter are those of this rank's latents: on several ranks it is another loss.
    """

    def __call__(self, codes: Codes, draw: Draw) -> Tensor:
        if codes.log_variance is not None:
            mean, log_variance = codes.mean, codes.log_variance
        else:
            vectors = codes.latents.float().flatten(0, -2)
            mean = vectors.mean(0)
            log_variance = vectors.var(0, correction=0).clamp(min=1e-12).log()
        return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def build_objective(name: ObjectiveName, prior: FlowPrior, num_draws: int) -> Objective:
    """The objective of that name."""
    if name == "flow_prior":
        return FlowAlignment(prior, num_draws)
    return GaussianKL() if name == "kl" else Unaligned()
