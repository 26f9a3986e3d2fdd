"""The judge of photographs: torch-fidelity's Inception."""

import sys
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from flowprior.evaluation.inception import (
    EXTRACTOR,
    RESIZE,
    Inception,
    cached,
    extract_generated,
    extract_real,
    fid,
    inception_metrics,
)
from flowprior.evaluation.judge import Material, judge_facts
from flowprior.evaluation.reference import Reference, open_reference


class OnInception:
    """torch-fidelity's Inception, a piece at a time; features of real images are kept on disk."""

    @classmethod
    def build(cls, material: Material) -> "OnInception":
        """Takes the weights, the real images and the cache."""
        weights = material.evaluation.weights
        real = open_reference(material.reference, material.held_out, material.size, material.batch)
        network = Inception(Path(weights) if weights else None, material.device)
        return cls(network, real, material.cache)

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
        self.facts = judge_facts(EXTRACTOR, network.sha256, RESIZE, count, moments)

    def judge(
        self, pieces: Iterable[Tensor], labels: Tensor | None = None
    ) -> dict[str, float | None]:
        generated = extract_generated(pieces, self._network)
        if labels is None:
            return {"fid": fid(generated, self._real)}
        return inception_metrics(generated, self._real)
