"""The judge of 8 x 8 digits: the classifier that ships with the package."""

from collections.abc import Iterable

import torch
from torch import Tensor

from flowprior.core.io import file_digest
from flowprior.encoders.shipped import DIGITS_DIR, load_digits_network
from flowprior.evaluation.fidelity import generation_metrics, label_agreement, register_extractor
from flowprior.evaluation.judge import Material, images_in_bytes, judge_facts
from flowprior.images.sets import ImageSet


class OnDigits:
    """The classifier that ships with the package, all images at once."""

    @classmethod
    def build(cls, material: Material) -> "OnDigits":
        """Takes the images."""
        return cls(material.train, material.held_out, material.batch)

    def __init__(self, train: ImageSet, held_out: ImageSet, batch: int) -> None:
        network = load_digits_network("evaluation", train_digest=train.digest)

        def features(images: Tensor) -> Tensor:
            found: Tensor = network.features(images.float() / 127.5 - 1)
            return found

        def logits(images: Tensor) -> Tensor:
            found: Tensor = network(images.float() / 127.5 - 1)
            return found

        register_extractor("digits", features, logits)
        self._logits = logits
        self._real = torch.cat(list(images_in_bytes(held_out, batch)))
        sha256 = file_digest(DIGITS_DIR / "evaluation.safetensors")
        self.facts = judge_facts("digits", sha256, None, len(self._real), "computed")

    @torch.no_grad()
    def judge(
        self, pieces: Iterable[Tensor], labels: Tensor | None = None
    ) -> dict[str, float | None]:
        images = torch.cat(list(pieces))
        found: dict[str, float | None] = {
            **generation_metrics(images, self._real, "digits", with_diversity=labels is not None)
        }
        if labels is not None:
            found["label_agreement"] = label_agreement(self._logits(images), labels)
        return found
