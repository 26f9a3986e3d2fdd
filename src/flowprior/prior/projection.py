"""Fixed linear maps from target features to the dimension of the latents; §4.1, arXiv:2506.05240."""

from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowprior.core import rng
from flowprior.core.io import load_tensors, read_json, save_tensors, write_json
from flowprior.stats.moments import Moments

Operator = Literal["random", "avg_pool", "pca"]
OPERATORS: tuple[Operator, ...] = ("random", "avg_pool", "pca")


class Projection(nn.Module):
    """`targets = scale * features @ matrix`, frozen.

    Attributes:
        matrix: [D, d].
        scale: One number; it gives the targets a variance of 1 (about the mean of each dim,
            averaged over dims). The mean stays.
        operator: How the matrix was made; `identity` where D = d.
        seed: What a random matrix was drawn with.

    Raises:
        ValueError: Called with features of another number of channels.
    """

    # Paper: assumes normalised features and scales before the projection. Here the scale is
    # measured behind it, so that every operator hands the flow targets of the same spread.

    matrix: Tensor

    def __init__(
        self, matrix: Float[Tensor, "D d"], scale: float, operator: str, seed: int
    ) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix.float())
        self.scale = scale  # no buffer: some devices have no float64
        self.operator = operator
        self.seed = seed

    @property
    def in_dim(self) -> int:
        """Channels D of the features."""
        return int(self.matrix.shape[0])

    @property
    def out_dim(self) -> int:
        """Channels d of the targets."""
        return int(self.matrix.shape[1])

    def forward(self, features: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch d"]:
        if features.shape[-1] != self.in_dim:
            raise ValueError(
                f"features have {features.shape[-1]} channels, the projection takes {self.in_dim}"
            )
        with torch.autocast(features.device.type, enabled=False):
            projected: Tensor = features.to(self.matrix.dtype) @ self.matrix
        return projected * self.scale

    @classmethod
    def fit(cls, moments: Moments, dim: int, operator: Operator, seed: int) -> "Projection":
        """Build the projection for features with the given moments.

        Args:
            moments: Mean and covariance of the features, which fix the scale and the principal
                components.
            dim: Channels d of the targets.
            operator: `random`: entries N(0, 1/D), also up to d > D (targets of rank D); `avg_pool`:
                means of neighbouring channels; `pca`: the leading principal components. Where D = d
                every operator is the identity.
            seed: Seeds `random`.

        Raises:
            ValueError: d > D and not `random`, an unknown operator, or features that do not vary.
        """
        features_dim = moments.dim
        if operator not in OPERATORS:
            raise ValueError(f"unknown operator {operator!r}; use one of {', '.join(OPERATORS)}")
        if dim < 1 or (dim > features_dim and operator != "random"):
            raise ValueError(
                f"cannot project {features_dim} channels to {dim} by {operator}; take a dim from 1 to "
                f"{features_dim}, or the operator random, which also goes up"
            )
        covariance = moments.covariance
        name: str = operator
        if dim == features_dim:
            matrix, name = torch.eye(dim), "identity"
        elif operator == "random":
            draw = rng.generator(seed, "projection")
            matrix = torch.randn(features_dim, dim, generator=draw) / features_dim**0.5
        elif operator == "avg_pool":
            matrix = _pooling_matrix(features_dim, dim)
        else:
            matrix = _principal_components(covariance, dim)
        projected = matrix.double()
        variance = torch.einsum("Dd,DE,Ed->d", projected, covariance, projected).mean()
        spread = float((covariance.diagonal() + moments.mean.square()).mean())
        if not variance > 1e-20 * spread:
            raise ValueError("the features do not vary, so they cannot be given unit spread")
        return cls(matrix, float(variance.rsqrt()), name, seed)

    def tensors(self) -> dict[str, Tensor]:
        """Matrix, float32, and scale, float64, on the CPU: what is saved of it."""
        scale = torch.tensor(self.scale, dtype=torch.float64, device="cpu")
        return {"matrix": self.matrix.cpu(), "scale": scale}

    def save(self, folder: Path) -> None:
        """Write `projection.safetensors` and `projection.json` into a folder."""
        save_tensors(folder / "projection.safetensors", self.tensors())
        write_json(folder / "projection.json", {"operator": self.operator, "seed": self.seed})

    @classmethod
    def load(cls, folder: Path) -> "Projection":
        """Read what `save` wrote."""
        tensors = load_tensors(folder / "projection.safetensors")
        facts = read_json(folder / "projection.json")
        return cls(tensors["matrix"], float(tensors["scale"]), facts["operator"], facts["seed"])

    def irreducible_loss(self) -> float:
        """Of a perfect flow on targets of N(0, I) features: (pi / 2) mean(s), s the targets' d principal stds."""
        matrix = self.matrix.double() * self.scale
        return float(torch.pi / 2 * torch.linalg.svdvals(matrix).sum() / self.out_dim)


def _pooling_matrix(features_dim: int, dim: int) -> Tensor:
    """Adaptive average pooling over channels as a matrix; windows as in torch's `adaptive_avg_pool1d`."""
    matrix: Tensor = torch.nn.functional.adaptive_avg_pool1d(torch.eye(features_dim), dim)
    return matrix


def _principal_components(covariance: Tensor, dim: int) -> Tensor:
    """The leading eigenvectors, largest first, each with its largest entry positive."""
    vectors = torch.linalg.eigh(covariance).eigenvectors.flip(-1)[:, :dim]
    largest = vectors.abs().argmax(0, keepdim=True)
    components: Tensor = vectors * vectors.gather(0, largest).sign()
    return components.float()
