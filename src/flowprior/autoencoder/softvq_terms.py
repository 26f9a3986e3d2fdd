"""What SoftVQ adds to an autoencoder's loss: entropy of the assignments, agreement with a frozen network's features."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowprior.autoencoder.registry import ImageAutoencoder
from flowprior.autoencoder.representation import RepresentationHead
from flowprior.autoencoder.softvq import entropy_loss
from flowprior.core.codes import Codes
from flowprior.core.rng import Draw


class Teacher(NamedTuple):
    """A frozen network whose features latents should predict.

    Attributes:
        features: Images [b, c, h, w] to features [b, p, D].
        dim: Channels D.
        digest: Fixes its weights.
    """

    features: Callable[[Tensor], Tensor]
    dim: int
    digest: str


class Trainee(nn.Module):
    """An autoencoder and, where there is a teacher, the head that predicts its features, trained as one module.

    Args:
        autoencoder: What is kept.
        head: What is not.
    """

    def __init__(self, autoencoder: ImageAutoencoder, head: RepresentationHead | None) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder  # a module as well, which no type says
        self.head = head

    @property
    def undecayed(self) -> tuple[str, ...]:
        """Names for `optim.adamw`: codes are directions, which decay would only make turn faster."""
        codebooks = getattr(self.autoencoder.bottleneck, "codebooks", None)
        return () if codebooks is None else ("autoencoder.bottleneck.codebooks",)

    def forward(
        self,
        images: Float[Tensor, "b c H W"],
        noise: Float[Tensor, "b n d"] | None = None,
        features: Float[Tensor, "b p D"] | None = None,
    ) -> tuple[Float[Tensor, "b c H W"], Codes, Float[Tensor, ""] | None]:
        """Reconstructions, codes, and the head's loss where there are features."""
        restored, codes = self.autoencoder(images, noise)
        if self.head is None or features is None:
            return restored, codes, None
        return restored, codes, self.head(codes.latents, features)


class SoftVQTerms:
    """Both terms; without codebooks and a teacher it computes nothing.

    Args:
        entropy_weight: Factor of the entropy loss; 0 computes nothing.
        representation_weight: Factor of the head's loss.
    """

    def __init__(self, entropy_weight: float, representation_weight: float) -> None:
        self._entropy_weight = entropy_weight
        self._representation_weight = representation_weight

    def __call__(
        self, codes: Codes, disagreement: Tensor | None, draw: Draw
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What is added to the loss, and its parts for the log.

        Args:
            codes: Of the batch.
            disagreement: The head's loss; None without a teacher.
            draw: Gathers over ranks.
        """
        loss = torch.zeros((), device=codes.latents.device)
        logged: dict[str, Tensor] = {}
        if disagreement is not None:
            loss = loss + self._representation_weight * disagreement
            logged["representation"] = disagreement
        if codes.logits is not None and self._entropy_weight:
            entropy, parts = entropy_loss(codes.logits, draw.gather)
            loss = loss + self._entropy_weight * entropy
            logged |= parts
        return loss, logged
