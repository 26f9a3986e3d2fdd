"""What the pipeline trained, for one's own code: images to latents and back, labels to images."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from flowprior.autoencoder.registry import ImageAutoencoder, autoencoder_from
from flowprior.core import rng
from flowprior.core.trained import load_trained
from flowprior.generation.sampler import Sampler

BATCH = 64
"""Images that are drawn together."""


class Autoencoder:
    """The autoencoder of a finished pipeline, ready to use; made by `Autoencoder.load`.

    Args:
        model: In eval mode, on the device.
        device: Where it is.
    """

    def __init__(self, model: ImageAutoencoder, device: torch.device) -> None:
        self.model = model
        self.device = device

    @classmethod
    def load(
        cls, path: str | Path = "data/autoencoder", device: torch.device | str = "cpu"
    ) -> "Autoencoder":
        """Read what the stage `train_ae` wrote.

        Args:
            path: Its folder.
            device: Where to compute.

        Raises:
            ArtifactError: It is absent or damaged.
        """
        where = Path(path).expanduser()
        trained = load_trained(where, "autoencoder", "the stage `train_ae`")
        here = torch.device(device)
        return cls(trained.build(autoencoder_from, where).to(here), here)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Float[Tensor, "b n d"]:
        """Latents of images; of a posterior its mean.

        Args:
            images: [b, c, H, W], of the size that it was trained on; bytes, or numbers in [-1, 1].

        Raises:
            ValueError: They are of another shape, or numbers outside of [-1, 1].
        """
        if images.ndim != 4:
            raise ValueError(f"images must be [b, c, H, W], found {list(images.shape)}")
        pixels = images.to(self.device)
        pixels = pixels.float() / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels.float()
        if pixels.numel() and float(pixels.abs().max()) > 1 + 1e-3:
            raise ValueError("images must be bytes, or numbers in [-1, 1]")
        mean: Tensor = self.model.encode(pixels).mean
        return mean

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b n d"]) -> Float[Tensor, "b c H W"]:
        """Images of latents, in [-1, 1]."""
        return self.model.decode(latents.to(self.device)).clamp(-1, 1)


class Generator:
    """The generator of a finished pipeline with its autoencoder; made by `Generator.load`.

    Attributes:
        num_classes: Labels are 0 .. num_classes - 1.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.num_classes = sampler.num_classes

    @classmethod
    def load(cls, path: str | Path = "data", device: torch.device | str = "cpu") -> "Generator":
        """Read what the stages `train_ae` and `train_mar` wrote.

        Args:
            path: The folder with `autoencoder` and `mar`.
            device: Where to compute.

        Raises:
            ArtifactError: One is absent or damaged.
        """
        return cls(Sampler(Path(path).expanduser(), torch.device(device)))

    def sample(
        self,
        labels: Sequence[int] | Tensor,
        guidance: float | int = 1.0,
        *,
        seed: int = 0,
        iterations: int | None = None,
        steps: int = 50,
    ) -> UInt8[Tensor, "b c H W"]:
        """An image for each label, on the CPU.

        Args:
            labels: Classes, [b].
            guidance: Scale of the guidance; 1 is none.
            seed: Equal seeds and labels draw equal images.
            iterations: Passes of the generator; by default all tokens one by one.
            steps: Steps of the head's ODE for each token.

        Raises:
            ValueError: A label that there is not.
        """
        asked = torch.as_tensor(labels, dtype=torch.int64).flatten()
        unknown = [int(one) for one in asked if not 0 <= one < self.num_classes]
        if unknown:
            raise ValueError(
                f"label {unknown[0]}: this generator knows the classes 0 to {self.num_classes - 1}"
            )
        parts = [
            self._sampler(
                part,
                rng.generator(seed, "sample", index),
                num_iterations=iterations or self._sampler.num_tokens,
                head_steps=steps,
                guidance_scale=guidance,
            ).cpu()
            for index, part in enumerate(asked.split(BATCH))
        ]
        return torch.cat(parts)
