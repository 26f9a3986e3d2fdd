"""A frozen network that turns images into feature tokens."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Encoder:
    """A frozen network: images [b, 3, h, w] in [-1, 1] to tokens [b, n, D], float32 on the CPU.

    Args:
        network: Images to tokens, both on `device`.
        dim: Channels D of a token.
        facts: What it is: at least `model` and the `sha256` of its weights.
        device: Where it computes.
    """

    def __init__(
        self, network: nn.Module, dim: int, facts: dict[str, str], device: torch.device
    ) -> None:
        self._network = network.float().to(device).eval().requires_grad_(False)
        self._device = device
        self.dim = dim
        self.facts = facts

    def __call__(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n D"]:
        return self.on_device(images).float().cpu()

    @torch.no_grad()
    def on_device(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n D"]:
        """Tokens of the images, left on the device that computes them, in the precision of the caller's autocast."""
        tokens: Tensor = self._network(images.to(self._device))
        return tokens
