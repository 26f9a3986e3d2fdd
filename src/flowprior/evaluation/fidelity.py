"""Fréchet distance, inception score, precision and recall through torch-fidelity, on any network's features.

With features other than Inception's the figures are called `fd_<extractor>` and
`inception_score_<extractor>`: they compare with one another, not with anybody's FID.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset

NEIGHBOURS = 3
"""k of precision and recall (Kynkäänniemi et al., 2019)."""


def register_extractor(
    name: str,
    features: Callable[[Tensor], Tensor],
    logits: Callable[[Tensor], Tensor],
) -> None:
    """Make a network known to torch-fidelity.

    Args:
        name: To ask for it by.
        features: uint8 images [b, c, h, w] to features [b, f].
        logits: uint8 images to class logits [b, k], for the inception score.
    """
    from torch_fidelity import register_feature_extractor
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    class Extractor(FeatureExtractorBase):  # type: ignore[misc]
        def __init__(self, name: str, features_list: Sequence[str], **kwargs: Any) -> None:
            super().__init__(name, features_list)
            self.features_list = list(features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features", "logits")

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
            found = {"features": features, "logits": logits}
            with torch.no_grad():
                return tuple(found[layer](batch).double() for layer in self.features_list)

    FEATURE_EXTRACTORS_REGISTRY.pop(name, None)  # else a second call in a process is refused
    register_feature_extractor(name, Extractor)


class _Images(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return self._images[index]


def generation_metrics(
    generated: UInt8[Tensor, "n c h w"],
    real: UInt8[Tensor, "m c h w"],
    extractor: str,
    *,
    suffix: str = "",
    batch: int = 512,
    with_diversity: bool = True,
) -> dict[str, float]:
    """Compare generated with real images.

    torch-fidelity 0.4 takes the generated images as input 1 and the real ones as input 2; precision
    is the share of generated images within the real manifold.

    Args:
        generated: Bytes.
        real: Bytes.
        extractor: A registered name.
        suffix: Behind every key.
        batch: Images at once.
        with_diversity: Also inception score, precision and recall; else the Fréchet distance alone.

    Returns:
        `fd_<extractor>`, `inception_score_<extractor>`, `precision`, `recall`.
    """
    from torch_fidelity import calculate_metrics

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = calculate_metrics(
            input1=_Images(generated),
            input2=_Images(real),
            feature_extractor=extractor,
            cuda=False,
            cache=False,
            save_cpu_ram=True,
            verbose=False,
            batch_size=batch,
            fid=True,
            isc=with_diversity,
            prc=with_diversity,
            prc_neighborhood=NEIGHBOURS,
            isc_splits=1,
            samples_shuffle=False,
        )
    names = {
        "frechet_inception_distance": f"fd_{extractor}",
        "inception_score_mean": f"inception_score_{extractor}",
        "precision": "precision",
        "recall": "recall",
    }
    return {new + suffix: float(found[old]) for old, new in names.items() if old in found}


def label_agreement(logits: Float[Tensor, "n k"], labels: Tensor) -> float:
    """Share of images that the classifier gives the class they were drawn for."""
    return float((logits.argmax(-1).cpu() == labels.cpu()).double().mean())
