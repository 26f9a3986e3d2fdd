"""Alignment of each image's latents with its own features: the sample-level term of SoftVQ-VAE, arXiv:2412.10958.

The idea of REPA (arXiv:2410.06940), on a tokenizer's latents instead of a generator's hidden states.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class RepresentationHead(nn.Module):
    """Three linear layers with SiLU between that predict features from latents; used in training only.

    Args:
        dim: Channels d of a latent.
        width: Of the two hidden layers.
        out_dim: Channels D of a feature.
    """

    def __init__(self, dim: int, width: int, out_dim: int) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.layers = nn.Sequential(
            nn.Linear(dim, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, out_dim),
        )

    def forward(
        self, latents: Float[Tensor, "b n d"], features: Float[Tensor, "b p D"]
    ) -> Float[Tensor, ""]:
        """Mean negative cosine of features and what the latents predict, in [-1, 1], in float32.

        Token i answers for the features i p/n to (i + 1) p/n - 1, the authors' 'repeat'.

        Args:
            latents: Gradients reach them.
            features: Of the same images, patches row by row, from a frozen encoder; no gradient
                reaches them.

        Raises:
            ValueError: The tokens do not divide the features, or the features have other channels than
                the head predicts.
        """
        n, p = latents.shape[1], features.shape[1]
        if p % n:
            raise ValueError(
                f"{p} features cannot be shared out evenly among {n} latent tokens; "
                "choose image and patch size of the features so that their number is a multiple"
            )
        if features.shape[2] != self.out_dim:
            raise ValueError(
                f"features have {features.shape[2]} channels, the head predicts {self.out_dim}"
            )
        predicted = F.normalize(self.layers(latents).float(), dim=-1)
        wanted = F.normalize(features.detach().float(), dim=-1)
        # The mean of a prediction's p/n cosines is its product with the mean of the p/n directions.
        cosines: Tensor = (predicted * wanted.unflatten(1, (n, p // n)).mean(2)).sum(-1)
        return -cosines.mean()
