"""How the study opens a session: what its checkpoints are found by, and the version of what it does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from flowprior.core.registry import plugin_digests
from flowprior.core.root import state_root
from flowprior.toy.config import Study
from flowprior.training.session import Session

VERSIONS = {"toy_flow": 1, "toy_points": 1}
"""Of each loop's behaviour; see `flowprior.config.versions`."""


def open_session(
    stage: Literal["toy_flow", "toy_points"],
    cfg: Study,
    root: Path,
    *,
    config: Mapping[str, Any],
    plan: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> Session:
    """The session of one of the study's two loops, to be entered.

    Args:
        stage: Which loop; also a tag of every draw.
        cfg: The study's parameters.
        root: Of the workspace.
        config: What decides the result, as plain values.
        plan: Fields of the session's `Plan`.
        inputs: Digest of every input.
    """
    config = {"seed": cfg.seed, **config}
    return Session(
        stage,
        behaviour={
            "version": VERSIONS[stage],
            "config": config,
            "plugins": plugin_digests(config),
        },
        config=config,
        inputs=inputs,
        seed=cfg.seed,
        plan=plan,
        root=state_root(root),
    )
