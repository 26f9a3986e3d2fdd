"""The network that judges images: the shipped classifier for digits, none yet for other images."""

from typing import NamedTuple

import torch
from torch import Tensor

from flowprior.data.images import ImageSet
from flowprior.data.pretrained import load_digits_network
from flowprior.metrics.generation import register_extractor


class Evaluator(NamedTuple):
    """What torch-fidelity is asked for, and the classifier behind it; both None where there is no network.

    Attributes:
        extractor: Name registered with torch-fidelity.
        classifier: Images in [-1, 1] to logits.
    """

    extractor: str | None
    classifier: torch.nn.Module | None


def open_evaluator(source: str, train: ImageSet) -> Evaluator:
    """The evaluator for an image source; it must not have seen the images held out from `train`."""
    if source != "digits":
        return Evaluator(None, None)
    network = load_digits_network("evaluation", train_digest=train.digest)

    def features(images: Tensor) -> Tensor:
        found: Tensor = network.features(images.float() / 127.5 - 1)
        return found

    def logits(images: Tensor) -> Tensor:
        found: Tensor = network(images.float() / 127.5 - 1)
        return found

    register_extractor("digits", features, logits)
    return Evaluator("digits", network)
