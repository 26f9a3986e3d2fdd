"""Two small classifiers of 8 x 8 digits that stand in for DINOv2 and for Inception.

They share no layer: one gives the features that the prior is fitted to, the other judges samples.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

NUM_CLASSES = 10


class ConvNextBlock(nn.Module):
    """Residual block on a grid of tokens: depthwise 3 x 3, LayerNorm, two-layer MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, grid: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        mixed = self.depthwise(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out: Tensor = grid + self.mlp(self.norm(mixed))
        return out


class DigitsPatchNet(nn.Module):
    """The semantic network of the digits: patch tokens, their mean, a linear classifier.

    Attributes:
        width: Channels of a token.
        patch_size: Pixels along a side of a patch.
        num_tokens: Tokens of an image, 4 rows of 4.
    """

    width = 64
    depth = 4
    patch_size = 2
    num_tokens = 16

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, self.width, self.patch_size, stride=self.patch_size)
        self.blocks = nn.Sequential(*(ConvNextBlock(self.width) for _ in range(self.depth)))
        self.norm = nn.LayerNorm(self.width, eps=1e-6)
        self.head = nn.Linear(self.width, NUM_CLASSES)

    def features(self, images: Float[Tensor, "b 1 8 8"]) -> Float[Tensor, "b 16 64"]:
        """Patch tokens after the final norm, in row-major order."""
        grid = self.blocks(self.stem(images).permute(0, 2, 3, 1))
        tokens: Tensor = self.norm(grid).flatten(1, 2)  # b 4 4 c -> b 16 c
        return tokens

    def forward(self, images: Float[Tensor, "b 1 8 8"]) -> Float[Tensor, "b 10"]:
        """Logits."""
        logits: Tensor = self.head(self.features(images).mean(dim=1))
        return logits


class DigitsEvalNet(nn.Module):
    """The evaluation network of the digits: plain convolutions, one hidden layer.

    Attributes:
        width: Channels of the features.
    """

    width = 64

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 48, 3, padding=1)
        self.conv3 = nn.Conv2d(48, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * 2 * 2, self.width)
        self.output = nn.Linear(self.width, NUM_CLASSES)

    def features(self, images: Float[Tensor, "b 1 8 8"]) -> Float[Tensor, "b 64"]:
        """Penultimate activations, behind the leaky ReLU."""
        h = F.relu(self.conv1(images))
        h = F.max_pool2d(F.relu(self.conv2(h)), 2)  # b 48 4 4
        h = F.max_pool2d(F.relu(self.conv3(h)), 2)  # b 64 2 2
        # Leaky: a plain ReLU leaves a fifth of the units dead, and a Frechet distance wants a
        # covariance of full rank.
        return F.leaky_relu(self.hidden(h.flatten(1)), 0.1)

    def head(self, features: Float[Tensor, "b 64"]) -> Float[Tensor, "b 10"]:
        """Logits from features."""
        logits: Tensor = self.output(features)
        return logits

    def forward(self, images: Float[Tensor, "b 1 8 8"]) -> Float[Tensor, "b 10"]:
        """Logits."""
        return self.head(self.features(images))
