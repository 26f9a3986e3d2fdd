"""Flow priors for latent spaces: fit a flow to target features, then pull latents towards them.

    from flowprior import FlowPrior

    prior = FlowPrior.fit(features, dim=32)
    loss = reconstruction + 0.01 * prior.alignment_loss(latents)

The names below are imported on first use, so that `import flowprior` costs nothing and a pipeline
stage loads only the modules that it uses.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowprior.flow.losses import alignment_loss
    from flowprior.generation.loaded import Autoencoder, Generator
    from flowprior.prior.flow_prior import FlowPrior

__version__ = "0.1.0"
__all__ = ["Autoencoder", "FlowPrior", "Generator", "__version__", "alignment_loss"]

_HOMES = {
    "Autoencoder": "flowprior.generation.loaded",
    "FlowPrior": "flowprior.prior.flow_prior",
    "Generator": "flowprior.generation.loaded",
    "alignment_loss": "flowprior.flow.losses",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'flowprior' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
