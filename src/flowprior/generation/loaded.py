"""What the pipeline trained, for one's own code: images to latents and back, labels to images."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from flowprior.autoencoder.registry import ImageAutoencoder, autoencoder_from
from flowprior.core import rng
from flowprior.core.registry import allowed
from flowprior.core.sharing import CARD, fetch, packed, push
from flowprior.core.trained import load_trained
from flowprior.generation.cards import AE_ABOUT, AE_USAGE, GENERATOR_ABOUT, GENERATOR_USAGE, card_of
from flowprior.generation.sampler import AUTOENCODER, GENERATOR, PARTS, Sampler

BATCH = 64
"""Images that are drawn together."""
SHOWN_CLASSES = 20
"""Whose names stand on a page."""


class Autoencoder:
    """The autoencoder of a finished pipeline, ready to use; made by `Autoencoder.load` or `.from_pretrained`.

    Args:
        model: In eval mode, on the device.
        device: Where it is.
        folder: What it was read from.
    """

    def __init__(self, model: ImageAutoencoder, device: torch.device, folder: Path) -> None:
        self.model = model
        self.device = device
        self.folder = folder

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
        trained = load_trained(where, *AUTOENCODER)
        here = torch.device(device)
        return cls(trained.build(autoencoder_from, where).to(here), here, where)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: torch.device | str = "cpu",
        *,
        subfolder: str = "",
        **options: Any,
    ) -> "Autoencoder":
        """Read one from the hub of Hugging Face, or from a folder; needs the extra `hub`.

        Args:
            name: A repository of the hub (`organisation/name`), or a folder, which comes first.
            device: Where to compute.
            subfolder: Where in it the autoencoder lies; `autoencoder` in one of `Generator.push_to_hub`.
            options: revision (branch, tag or commit), token, cache_dir, force_download, local_files_only.

        Raises:
            ValueError: There is no such repository or revision, or it holds no autoencoder; an `ArtifactError` if what
                it holds is damaged.
            RuntimeError: The hub cannot be reached or refuses, and its cache lacks a file.
            ModuleNotFoundError: huggingface_hub is not installed.
        """
        return cls.load(fetch(name, [subfolder], **options) / subfolder, device)

    def push_to_hub(
        self, repo_id: str, *, source: str, license: str | None = None, **options: Any
    ) -> str:
        """Publish it on the hub of Hugging Face, as it lies in its folder, with a page that tells what it is.

        Args:
            repo_id: The repository (`organisation/name`), made if there is none; its README.md is written anew.
            source: What images it learned and what its latents were pulled towards, for the page.
            license: The hub's word for the licence, for instance `apache-2.0`.
            options: private, revision (a branch), token, commit_message, create_pr.

        Returns:
            The address of the commit, or of the proposal.

        Raises:
            ValueError: `repo_id` is no name; an `ArtifactError` if the folder is gone or damaged.
            RuntimeError: The hub cannot be reached or refuses.
            ModuleNotFoundError: huggingface_hub is not installed.
        """
        files = packed(self.folder, *AUTOENCODER)
        usage = AE_USAGE.format(name=repo_id)
        card = card_of(repo_id, AE_ABOUT, self.folder, {"trained on": source}, usage, license)
        return push({**files, CARD: card}, repo_id, **options)

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
    """The generator of a finished pipeline with its autoencoder; made by `Generator.load` or `.from_pretrained`.

    Attributes:
        num_classes: Labels are 0 .. num_classes - 1.
        class_names: What they are called.
        folder: What it was read from.
    """

    def __init__(self, sampler: Sampler, folder: Path) -> None:
        self._sampler = sampler
        self.num_classes = sampler.num_classes
        self.class_names = sampler.class_names
        self.folder = folder

    @classmethod
    def load(cls, path: str | Path = "data", device: torch.device | str = "cpu") -> "Generator":
        """Read what the stages `train_ae` and `train_mar` wrote.

        Args:
            path: The folder with `autoencoder` and `mar`.
            device: Where to compute.

        Raises:
            ArtifactError: One is absent or damaged.
        """
        folder = Path(path).expanduser()
        return cls(Sampler(folder, torch.device(device)), folder)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: torch.device | str = "cpu",
        *,
        subfolder: str = "",
        **options: Any,
    ) -> "Generator":
        """Read one with its autoencoder from the hub of Hugging Face, or from a folder; needs the extra `hub`.

        Args:
            name: A repository of the hub (`organisation/name`), or a folder, which comes first.
            device: Where to compute.
            subfolder: Where in it the folders `autoencoder` and `mar` lie.
            options: revision (branch, tag or commit), token, cache_dir, force_download, local_files_only.

        Raises:
            ValueError: There is no such repository or revision, or it holds no generator; an `ArtifactError` if what it
                holds is damaged.
            RuntimeError: The hub cannot be reached or refuses, and its cache lacks a file.
            ModuleNotFoundError: huggingface_hub is not installed.
        """
        inner = [(PurePosixPath(subfolder) / part).as_posix() for part in PARTS]
        return cls.load(fetch(name, inner, **options) / subfolder, device)

    def push_to_hub(
        self, repo_id: str, *, source: str, license: str | None = None, **options: Any
    ) -> str:
        """Publish it and its autoencoder on the hub of Hugging Face, as they lie in their folders, with a page.

        Args:
            repo_id: The repository (`organisation/name`), made if there is none; its README.md is written anew.
            source: What images they learned and what the latents were pulled towards, for the page.
            license: The hub's word for the licence, for instance `apache-2.0`.
            options: private, revision (a branch), token, commit_message, create_pr.

        Returns:
            The address of the commit, or of the proposal.

        Raises:
            ValueError: `repo_id` is no name; an `ArtifactError` if a folder is gone or damaged.
            RuntimeError: The hub cannot be reached or refuses.
            ModuleNotFoundError: huggingface_hub is not installed.
        """
        folders = [self.folder / part for part in PARTS]
        files = [
            packed(folder, *made, part)
            for folder, made, part in zip(folders, (AUTOENCODER, GENERATOR), PARTS, strict=True)
        ]
        usage = GENERATOR_USAGE.format(name=repo_id)
        names = ", ".join(self.class_names[:SHOWN_CLASSES])
        more = ", ..." if self.num_classes > SHOWN_CLASSES else ""
        facts: dict[str, object] = {
            "trained on": source,
            "classes": f"{self.num_classes}: {names}{more}",
        }
        card = card_of(repo_id, GENERATOR_ABOUT, folders[0], facts, usage, license)
        return push({**files[0], **files[1], CARD: card}, repo_id, **options)

    def number_of(self, label: int | str | Tensor) -> int:
        """The number of a class.

        Args:
            label: The number, or the class's name, which comes first, in any case where that is clear.

        Raises:
            ValueError: There is no such class.
        """
        if isinstance(label, str):
            alike = [i for i, name in enumerate(self.class_names) if name.lower() == label.lower()]
            if label in self.class_names:
                return self.class_names.index(label)
            if len(alike) == 1:
                return alike[0]
            if not re.fullmatch(r"[0-9]{1,9}", label):
                raise ValueError(f"there is no class {label!r}; {allowed(label, self.class_names)}")
        number = int(label)
        if not 0 <= number < self.num_classes:
            raise ValueError(
                f"label {number}: this generator knows the classes 0 to {self.num_classes - 1}"
            )
        return number

    def sample(
        self,
        labels: Sequence[int | str] | Tensor,
        guidance: float | int = 1.0,
        *,
        seed: int = 0,
        iterations: int | None = None,
        steps: int = 50,
    ) -> UInt8[Tensor, "b c H W"]:
        """An image for each label, on the CPU.

        Args:
            labels: Classes, [b], as numbers or by their names.
            guidance: Scale of the guidance; 1 is none.
            seed: Equal seeds and labels draw equal images.
            iterations: Passes of the generator; by default all tokens one by one.
            steps: Steps of the head's ODE for each token.

        Raises:
            ValueError: A label that there is not.
        """
        asked = torch.tensor([self.number_of(one) for one in labels], dtype=torch.int64)
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
