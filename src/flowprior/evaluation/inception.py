"""FID, inception score, precision, recall and KID on the features of torch-fidelity's Inception.

Images are looked at once, in pieces; afterwards there are moments in float64 and features, from
which the figures come. torch-fidelity's convention is kept: generated images first, real ones second.
"""

import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from flowprior.core.artifacts import package_versions
from flowprior.core.io import (
    ArtifactError,
    digest,
    file_digest,
    load_tensors,
    read_json,
    save_tensors,
    write_json,
)
from flowprior.evaluation.fidelity import NEIGHBOURS
from flowprior.evaluation.frechet import frechet_distance
from flowprior.stats.moments import Moments

EXTRACTOR = "inception-v3-compat"
RESIZE = "299 x 299, bilinear as in TensorFlow 1"
DTYPE = "float32"
"""Of the network; all statistics are float64."""
MAX_POOL = 50_000
"""Precision, recall and KID look at no more real images; moments are of all."""
ISC_SPLITS = 10
KID_SUBSET = 1000

Network = Callable[[Tensor], tuple[Tensor, Tensor]]
"""uint8 images [b, c, h, w] to pool features [b, D] and logits [b, k]."""


class Inception:
    """The network behind FIDs: TensorFlow's of 2015, in torch-fidelity's port, which also resizes.

    Attributes:
        sha256: Of the file of its weights.

    Args:
        weights: torch-fidelity's file; None takes the one in torch's hub folder, and downloads it
            where it is absent.
        device: Where to compute.

    Raises:
        ValueError: The file is absent and cannot be had, or holds something else.
    """

    def __init__(self, weights: Path | None, device: torch.device) -> None:
        from torch_fidelity.utils import create_feature_extractor

        path = _downloaded() if weights is None else weights
        if not path.is_file():
            raise ValueError(f"the Inception weights {path} do not exist")
        try:
            # torch-fidelity unpickles without restriction; what passes here holds tensors alone.
            torch.load(path, map_location="cpu", weights_only=True)
            network = create_feature_extractor(
                EXTRACTOR,
                ["2048", "logits_unbiased"],
                cuda=False,
                feature_extractor_weights_path=str(path),
                verbose=False,
            )
        except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{path} are not torch-fidelity's Inception weights: {reason}"
            ) from None
        self._network = network.to(device)
        self._device = device
        self.sha256 = file_digest(path)

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> tuple[Tensor, Tensor]:
        pool, logits = self._network(images.to(self._device))
        return pool.cpu(), logits.cpu()

    def cache_key(self, images_digest: str) -> dict[str, object]:
        """All that the features of some images depend on."""
        return {
            "images": images_digest,
            "extractor": EXTRACTOR,
            "weights": self.sha256,
            "resize": RESIZE,
            "max_pool": MAX_POOL,
            "packages": package_versions("torch-fidelity"),
        }


class Features(NamedTuple):
    """What a comparison knows of one set of images.

    Attributes:
        mean: Of the pool features, float64 [D].
        covariance: Divided by the number of images less one, float64 [D, D].
        pool: Pool features, float32 [n, D]; none where only the moments were published.
        logits: For the inception score [n, k]; None for real images.
        num_images: Images that the moments are of; 0 where only they were published.
    """

    mean: Tensor
    covariance: Tensor
    pool: Tensor
    logits: Tensor | None
    num_images: int


def extract_generated(pieces: Iterable[Tensor], network: Network) -> Features:
    """Features and logits of all images."""
    found = [network(piece) for piece in pieces]
    pool = torch.cat([pool for pool, _ in found])
    moments = Moments(pool.shape[1])
    moments.update(pool)
    return _features(moments, pool, torch.cat([logits for _, logits in found]))


def extract_real(pieces: Iterable[Tensor], num_images: int, network: Network) -> Features:
    """Moments of all `num_images`, and pool features of `MAX_POOL` of them at most, evenly spread.

    Raises:
        ValueError: There are no images, or only one.
    """
    moments: Moments | None = None
    kept = []
    start = 0
    for piece in pieces:
        pool = network(piece)[0]
        moments = moments or Moments(pool.shape[1])
        moments.update(pool)
        rows = torch.arange(start, start + len(pool))
        share = min(MAX_POOL, num_images)
        kept.append(pool[(rows + 1) * share // num_images > rows * share // num_images])
        start += len(pool)
    if moments is None:
        raise ValueError("there are no real images")
    return _features(moments, torch.cat(kept), None)


def _features(moments: Moments, pool: Tensor, logits: Tensor | None) -> Features:
    count = moments.count
    if count < 2:
        raise ValueError(f"a covariance needs two images or more, found {count}")
    return Features(moments.mean, moments.covariance * (count / (count - 1)), pool, logits, count)


def published(mean: Float[Tensor, " D"], covariance: Float[Tensor, "D D"]) -> Features:
    """Moments that somebody else computed; there are no features behind them."""
    return Features(mean.double(), covariance.double(), mean.new_empty(0, len(mean)), None, 0)


def cached(folder: Path, key: Mapping[str, object], compute: Callable[[], Features]) -> Features:
    """Features of real images from a folder, computed where they are absent or their file is damaged.

    Args:
        folder: Of files `<digest of the key>.safetensors`, each with a `.json` that has its sha256.
        key: All that the features depend on; see `Inception.cache_key`.
        compute: Computes them.
    """
    file = folder / f"{digest(dict(key))}.safetensors"
    note = file.with_suffix(".json")
    try:
        if read_json(note) == {"key": dict(key), "sha256": file_digest(file)}:
            stored = load_tensors(file)
            count = int(stored["num_images"])
            return Features(stored["mean"], stored["covariance"], stored["pool"], None, count)
    except (ArtifactError, OSError):
        pass
    found = compute()
    tensors = {"mean": found.mean, "covariance": found.covariance, "pool": found.pool}
    save_tensors(file, tensors | {"num_images": torch.tensor(found.num_images)})
    write_json(note, {"key": dict(key), "sha256": file_digest(file)})
    return found


def inception_metrics(generated: Features, real: Features) -> dict[str, float | None]:
    """Compare generated with real images.

    Returns:
        `fid`, `inception_score`, `precision`, `recall`, `kid`; the last three are None where there
        are no features of real images.

    Raises:
        ValueError: There are too few images for neighbours.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    found: dict[str, float | None] = {"fid": fid(generated, real)}
    if generated.logits is not None:
        scores = isc_features_to_metric(
            generated.logits, splits=min(ISC_SPLITS, len(generated.logits))
        )
        found["inception_score"] = scores["inception_score_mean"]
    if not len(real.pool):
        return found | dict.fromkeys(("precision", "recall", "kid"))
    fewest = min(len(generated.pool), len(real.pool))
    if fewest <= NEIGHBOURS:
        raise ValueError(
            f"precision and recall look at {NEIGHBOURS} neighbours and need more images than that on "
            f"either side, found {len(generated.pool)} generated and {len(real.pool)} real"
        )
    pools = generated.pool.double(), real.pool.double()
    shares = prc_features_to_metric(
        *pools, prc_neighborhood=NEIGHBOURS, prc_batch_size=2000, save_cpu_ram=True, verbose=False
    )
    kid = kid_features_to_metric(*pools, kid_subset_size=min(KID_SUBSET, fewest), verbose=False)
    return found | {
        "precision": shares["precision"],
        "recall": shares["recall"],
        "kid": kid["kernel_inception_distance_mean"],
    }


def fid(generated: Features, real: Features) -> float:
    """The Fréchet distance of the moments.

    Raises:
        ValueError: They are of features of another width.
    """
    if generated.mean.shape != real.mean.shape:
        raise ValueError(
            f"the reference has moments of {len(real.mean)} features, {EXTRACTOR} gives {len(generated.mean)}"
        )
    return frechet_distance(generated.mean, generated.covariance, real.mean, real.covariance)


def _downloaded() -> Path:
    """torch-fidelity's weights in torch's hub folder."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    url: str = URL_INCEPTION_V3
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except OSError as error:
            raise ValueError(
                f"the Inception weights are not at {path}, and {url} cannot be had ({error}); "
                "download them elsewhere and name the file in evaluation.weights, or set "
                "evaluation.judge to none"
            ) from None
    return path
