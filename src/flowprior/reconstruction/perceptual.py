"""LPIPS on VGG16: how different two images look; arXiv:1801.03924."""

import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def warmup(step: int, num_steps: int = 10_000) -> float:
    """What the perceptual weight is multiplied by: from 0 to 1 over the first `num_steps`."""
    return min(1.0, step / num_steps) if num_steps else 1.0


class Perceptual(nn.Module):
    """The LPIPS distance with frozen weights; always in eval mode, so its dropout never acts.

    Args:
        network: An `lpips.LPIPS`.
    """

    # Paper: in the authors' code the training mode of the parent turns the dropout on.

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Perceptual":
        """Stay in eval mode, whatever the module that holds this one is put into."""
        return super().train(False)

    def forward(
        self, images: Float[Tensor, "b 3 H W"], restored: Float[Tensor, "b 3 H W"]
    ) -> Float[Tensor, " b"]:
        """The distance of each pair, images in [-1, 1] of at least 16 pixels; gradients reach both."""
        network: Any = self.network
        total = images.new_zeros(len(images), dtype=torch.float32)
        # Not the package's own forward: its norm has no finite gradient where all channels are 0.
        maps = (network.net(network.scaling_layer(batch)) for batch in (images, restored))
        for one, other, weigh in zip(*maps, network.lins, strict=True):  # codespell:ignore lins
            difference = F.normalize(one.float(), eps=1e-10) - F.normalize(other.float(), eps=1e-10)
            total = total + weigh(difference.square()).float().mean((1, 2, 3))
        return total


def build_perceptual(*, pretrained: bool = True) -> Perceptual:
    """LPIPS-VGG; its own weights come with the package, VGG16's from torchvision's cache or the network.

    Args:
        pretrained: False leaves VGG16 random; then it reads torch's global stream.

    Raises:
        ModuleNotFoundError: The package lpips is absent.
        RuntimeError: VGG16's weights cannot be had.
    """
    try:
        import lpips
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the perceptual loss needs the package lpips: pip install 'flowprior[imagenet]', "
            "or set its weight to 0"
        ) from error
    try:
        with warnings.catch_warnings(action="ignore"):  # lpips calls torchvision's older interface
            network = lpips.LPIPS(net="vgg", pnet_rand=not pretrained, verbose=False)
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"VGG16's weights cannot be loaded: {error}. Without network, put torchvision's "
            f"vgg16-397923af.pth into {torch.hub.get_dir()}/checkpoints"
        ) from error
    return Perceptual(network)
