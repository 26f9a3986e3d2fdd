"""From the name of an autoencoder to the autoencoder."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from flowprior.autoencoder.bottleneck import Codebooks
from flowprior.autoencoder.names import AUTOENCODERS
from flowprior.autoencoder.shape import Shape
from flowprior.core.codes import Codes


@runtime_checkable
class ImageAutoencoder(Protocol):
    """What the stages ask of an autoencoder besides being a module; see `flowprior.autoencoder.vit.Autoencoder`.

    `forward(images, noise)` gives reconstructions and codes.

    Attributes:
        bottleneck: Between encoder and decoder.
        last_layer: The weight that the adversarial term is balanced at.
    """

    bottleneck: nn.Module

    @property
    def last_layer(self) -> Tensor: ...

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Codes:
        """Images [b, c, H, W] in [-1, 1] to latents [b, n, d]; `noise` samples a posterior where there is one."""
        ...

    def __call__(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Codes]:
        """Reconstructions and codes."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [b, n, d] to images [b, c, H, W], not clamped."""
        ...


def autoencoder_from(config: Mapping[str, Any]) -> Any:
    """An autoencoder by its config; reads torch's global stream for its initialisation.

    Args:
        config: `model` (a name of `flowprior.autoencoder.names.AUTOENCODERS` or a plugin's: what it stands for is
            called with shape, name of the bottleneck, codebooks and the options), `shape` (a `Shape` as a dict),
            `bottleneck`, `codebooks` (of softvq, a `Codebooks` as a dict) and `options`.

    Raises:
        ValueError: The name is unknown, or the sizes do not go together.
    """
    codebooks = config.get("codebooks")
    return AUTOENCODERS.load(config.get("model", "vit"))(
        Shape(**config["shape"]),
        config["bottleneck"],
        None if codebooks is None else Codebooks(**codebooks),
        **config.get("options", {}),
    )
