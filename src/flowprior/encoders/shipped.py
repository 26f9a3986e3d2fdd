"""The two digits networks that ship with the package, checked before they are used.

`digits_weights/networks.json` says what they are, how well they classify, and which training split they
saw; `flowprior.encoders.train_shipped` writes it and the weights.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flowprior.core.io import ArtifactError, file_digest, load_tensors, read_json
from flowprior.encoders.digits import DigitsEvalNet, DigitsPatchNet

DigitsNetwork = Literal["semantic", "evaluation"]
DIGITS_NETWORKS: dict[DigitsNetwork, type[DigitsPatchNet] | type[DigitsEvalNet]] = {
    "semantic": DigitsPatchNet,
    "evaluation": DigitsEvalNet,
}
DIGITS_DIR = Path(__file__).parent / "digits_weights"
FACTS = "networks.json"
TRAINER = "-m flowprior.encoders.train_shipped"


def load_digits_network(
    which: DigitsNetwork, *, train_digest: str | None = None, directory: Path = DIGITS_DIR
) -> DigitsPatchNet | DigitsEvalNet:
    """Load a digits network on the CPU, frozen and in eval mode.

    Args:
        which: `semantic` (features for the prior) or `evaluation` (judge of samples).
        train_digest: The caller's `Digits("train", split_seed).digest`; see `check_split`. None
            skips the check.
        directory: Where the weights and `networks.json` are.

    Raises:
        ArtifactError: A file is absent or damaged, or the weights do not fit the code.
        ValueError: The name is unknown, or the network was trained on another split.
    """
    if which not in DIGITS_NETWORKS:
        raise ValueError(
            f"unknown digits network {which!r}; use one of {', '.join(DIGITS_NETWORKS)}"
        )
    if train_digest is not None:
        check_split(train_digest, directory=directory)
    expected = _fact(directory, "networks", which, "sha256")
    weights = directory / f"{which}.safetensors"
    if not weights.is_file():
        raise ArtifactError(f"{weights} does not exist; run `python {TRAINER}`")
    found = file_digest(weights)
    if found != expected:
        raise ArtifactError(
            f"{weights} is damaged: its sha256 is {found}, {FACTS} says {expected}; "
            f"restore it or run `python {TRAINER}`"
        )
    network = DIGITS_NETWORKS[which]()
    try:
        network.load_state_dict(load_tensors(weights), strict=True)
    except RuntimeError as error:
        raise ArtifactError(
            f"{weights} does not fit {type(network).__name__} ({error}); run `python {TRAINER}`"
        ) from None
    return network.requires_grad_(False).eval()


def check_split(train_digest: str, *, directory: Path = DIGITS_DIR) -> None:
    """Make sure that the networks were trained on the caller's training split and on nothing else.

    Args:
        train_digest: The caller's `Digits("train", split_seed).digest`.
        directory: Where `networks.json` is.

    Raises:
        ArtifactError: `networks.json` is absent or damaged.
        ValueError: The networks were trained on another split, so they may have seen images that
            the caller holds out.
    """
    expected, split_seed = _fact(directory, "train_digest"), _fact(directory, "split_seed")
    if train_digest != expected:
        raise ValueError(
            f"the training split has the digest {train_digest}, but the digits networks in "
            f"{directory} were trained on {expected} (split_seed {split_seed}); "
            f"run python {TRAINER} --split-seed N, where N is your images.split_seed"
        )


def _fact(directory: Path, *keys: str) -> Any:
    value = read_json(directory / FACTS)
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise ArtifactError(
                f"{directory / FACTS} lacks {'.'.join(keys)}; restore it or run `python {TRAINER}`"
            )
        value = value[key]
    return value


class DigitsEncoder:
    """Patch features of the semantic digits network.

    Attributes:
        facts: What it is.
        digest: Sha256 of its weights.
        dim: Channels of a token.
    """

    def __init__(self, device: torch.device) -> None:
        self._network = load_digits_network("semantic").to(device)
        self._device = device
        self.facts = {"network": "DigitsPatchNet", "trained_on": "digits, training split"}
        self.digest = file_digest(DIGITS_DIR / "semantic.safetensors")
        self.dim = self._network.width

    def __call__(self, images: Float[Tensor, "b 1 8 8"]) -> Float[Tensor, "b n D"]:
        return self.on_device(images.to(self._device)).cpu()

    def on_device(self, images: Float[Tensor, "b 1 8 8"]) -> Float[Tensor, "b n D"]:
        """Tokens of the images, left on the device that computes them."""
        tokens: Tensor = self._network.features(images)
        return tokens


def open_digits_encoder(
    name: str | None = None, *, size: int, device: torch.device, **_: Any
) -> DigitsEncoder:
    """The encoder `digits` of the registry.

    Raises:
        ValueError: A model is named, or images are not 8 x 8.
    """
    if name is not None or size != 8:
        raise ValueError(
            f"prior.encoder digits is one network for 8 x 8 digits, found model {name!r} and images of {size} pixels"
        )
    return DigitsEncoder(device)
