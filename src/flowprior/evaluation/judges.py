"""What judges images: the shipped classifier for digits, Inception for other images, or nothing."""

import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from flowprior.config.params import Params
from flowprior.core.io import digest, file_digest
from flowprior.encoders.shipped import DIGITS_DIR, load_digits_network
from flowprior.evaluation.fidelity import generation_metrics, label_agreement, register_extractor
from flowprior.evaluation.inception import (
    DTYPE,
    EXTRACTOR,
    RESIZE,
    Features,
    Inception,
    cached,
    extract_generated,
    extract_real,
    fid,
    inception_metrics,
    published,
)
from flowprior.evaluation.npz import IMAGES, NpzImages
from flowprior.evaluation.reconstruction import to_uint8
from flowprior.images.sets import EXTENSIONS, ImageSet, batches, decode

Facts = dict[str, str | int | None]


class Evaluator(Protocol):
    """Compares images with the real ones.

    Attributes:
        facts: What stands beside every figure.
    """

    facts: Facts

    def judge(
        self, pieces: Iterable[Tensor], labels: Tensor | None = None
    ) -> dict[str, float | None]:
        """Figures of images [b, c, h, w] in bytes; all with the labels they were drawn for, else the distance alone."""
        ...


def open_evaluator(
    cfg: Params,
    train: ImageSet,
    held_out: ImageSet,
    batch: int,
    cache: Path,
    device: torch.device,
    reference: str | None = None,
) -> Evaluator:
    """The evaluator for an image source.

    Args:
        cfg: Which source, which network.
        train: An evaluator must not have seen images that are held out from these.
        held_out: The real images.
        batch: Images at once.
        cache: Folder for features of real images.
        device: Where to compute them.
        reference: Real images other than the held-out ones: a folder, or ADM's `.npz`.
    """
    if cfg.evaluation.extractor == "none":
        return Unjudged()
    if cfg.on_digits:
        return OnDigits(train, held_out, batch)
    real = open_reference(reference, held_out, cfg.scale.images.size, batch)
    weights = cfg.evaluation.weights
    return OnInception(Inception(Path(weights) if weights else None, device), real, cache)


def _facts(
    extractor: str | None = None,
    sha256: str | None = None,
    resize: str | None = None,
    num_real: int | None = None,
    real_moments: str | None = None,
) -> Facts:
    return {
        "extractor": extractor,
        "extractor_sha256": sha256,
        "extractor_resize": resize,
        "extractor_dtype": extractor and DTYPE,
        "statistics_dtype": extractor and "float64",
        "num_real": num_real,
        "real_moments": real_moments,
    }


class Unjudged:
    """No network: nothing is compared."""

    def __init__(self) -> None:
        self.facts = _facts()

    def judge(
        self, pieces: Iterable[Tensor], labels: Tensor | None = None
    ) -> dict[str, float | None]:
        for _ in pieces:  # whoever makes them as they are asked for still wants them made
            pass
        return {}


class OnDigits:
    """The classifier that ships with the package, all images at once."""

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
        self._real = torch.cat(list(_bytes_of(held_out, batch)))
        sha256 = file_digest(DIGITS_DIR / "evaluation.safetensors")
        self.facts = _facts("digits", sha256, None, len(self._real), "computed")

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


class Reference(NamedTuple):
    """Real images, not yet looked at.

    Attributes:
        digest: Fixes which they are; None where there are moments alone.
        num_images: How many.
        pieces: They, in bytes.
        moments: Of pool features, where the file gives them.
    """

    digest: str | None
    num_images: int
    pieces: Iterable[Tensor]
    moments: Features | None


class OnInception:
    """torch-fidelity's Inception, a piece at a time; features of real images are kept on disk."""

    def __init__(self, network: Inception, reference: Reference, cache: Path) -> None:
        self._network = network
        real = reference.moments
        if reference.digest is not None:
            found = cached(
                cache,
                network.cache_key(reference.digest),
                lambda: extract_real(reference.pieces, reference.num_images, network),
            )
            # The moments that everybody uses are those of the file.
            real = found if real is None else real._replace(pool=found.pool)
        else:
            print(
                "evaluation.reference holds mu and sigma alone: precision, recall and KID need images "
                "and are null",
                file=sys.stderr,
            )
        assert real is not None  # open_reference gives one of the two
        self._real = real
        moments = "computed" if reference.moments is None else "given"
        count = reference.num_images or None
        self.facts = _facts(EXTRACTOR, network.sha256, RESIZE, count, moments)

    def judge(
        self, pieces: Iterable[Tensor], labels: Tensor | None = None
    ) -> dict[str, float | None]:
        generated = extract_generated(pieces, self._network)
        if labels is None:
            return {"fid": fid(generated, self._real)}
        return inception_metrics(generated, self._real)


def open_reference(path: str | None, held_out: ImageSet, size: int, batch: int) -> Reference:
    """The held-out images, those of a folder, or ADM's `.npz` with `mu` and `sigma`, `arr_0`, or both.

    Raises:
        ValueError: The path is neither, or holds images of another size than the samples.
    """
    if path is None:
        return Reference(held_out.digest, len(held_out), _bytes_of(held_out, batch), None)
    where = Path(path)
    if where.is_dir():
        files = sorted(file for file in where.rglob("*") if file.suffix.lower() in EXTENSIONS)
        if not files:
            raise ValueError(
                f"evaluation.reference {path} holds no images ({' '.join(EXTENSIONS)})"
            )
        listing = [[file.relative_to(where).as_posix(), file.stat().st_size] for file in files]
        return Reference(
            digest(["folder", size, listing]), len(files), _bytes_in(files, size, batch), None
        )
    if where.suffix != ".npz" or not where.is_file():
        raise ValueError(f"evaluation.reference {path} is neither a folder nor an .npz that exists")
    keys, moments = _read_moments(where)
    if IMAGES not in keys:
        if moments is None:
            raise ValueError(
                f"evaluation.reference {path} has the keys {keys}; expected mu and sigma, {IMAGES}, or all"
            )
        return Reference(None, 0, (), moments)
    images = NpzImages(where)
    if images.channels != 3 or images.size != [size, size]:
        raise ValueError(
            f"evaluation.reference {path} holds images of {images.size} with {images.channels} "
            f"channels, the samples are [{size}, {size}] with 3"
        )
    return Reference(file_digest(where), len(images), images.pieces(batch), moments)


def _read_moments(path: Path) -> tuple[list[str], Features | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not {"mu", "sigma"} <= set(file.files):
                return file.files, None
            mean, covariance = (torch.from_numpy(file[key]) for key in ("mu", "sigma"))
            keys = file.files
    except (zipfile.BadZipFile, OSError, ValueError, TypeError) as error:
        raise ValueError(f"evaluation.reference {path} cannot be read: {error}") from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"evaluation.reference {path}: mu {list(mean.shape)} and sigma {list(covariance.shape)} "
            "are not a mean [D] and a covariance [D, D]"
        )
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError(f"evaluation.reference {path}: mu or sigma is not finite")
    return keys, published(mean, covariance)


def _bytes_of(images: ImageSet, batch: int) -> Iterator[Tensor]:
    for piece in batches(len(images), batch):
        yield to_uint8(images.images(piece))


def _bytes_in(files: list[Path], size: int, batch: int) -> Iterator[Tensor]:
    for piece in batches(len(files), batch):
        images = [decode(files[row].read_bytes(), size, str(files[row])) for row in piece]
        yield to_uint8(torch.stack(images))
