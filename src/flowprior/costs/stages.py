"""What each stage of the pipeline costs, by its name.

Models are built by the rooms' own builders, and a step is counted as the stage runs it (`flowprior.costs.flops`).
Left out are reading and decoding of images, elementwise arithmetic, evaluation (Inception, nearest neighbours), the
projection, and features of another kind than a transformer's. What a plugin does is counted where it runs on the meta
device; where it does not, `Work.uncounted` says so.
"""

from collections.abc import Callable

from flowprior.config.schema import Params
from flowprior.costs.facts import Facts
from flowprior.costs.of_autoencoder import encode_latents, train_ae
from flowprior.costs.of_generator import sample_eval, train_mar
from flowprior.costs.of_prior import extract_features, project, train_flow
from flowprior.costs.work import UncountedError, Work

STAGES: dict[str, Callable[[Params, Facts], Work]] = {
    "extract_features": extract_features,
    "project": project,
    "train_flow": train_flow,
    "train_ae": train_ae,
    "encode_latents": encode_latents,
    "train_mar": train_mar,
    "sample_eval": sample_eval,
}
"""In the order of the pipeline."""


def count(stage: str, cfg: Params, facts: Facts) -> Work:
    """What a stage costs; with nothing but a reason where a plugin makes that unknown.

    Args:
        stage: A name of `STAGES`.
        cfg: The parameters.
        facts: What is assumed of the data, see `flowprior.costs.facts.assumed`.

    Raises:
        ValueError: The parameters name a network that does not exist.
        ModuleNotFoundError: A package of an extra is needed and absent.
    """
    try:
        return STAGES[stage](cfg, facts)
    except UncountedError as error:
        return Work(0, uncounted=(str(error),))
