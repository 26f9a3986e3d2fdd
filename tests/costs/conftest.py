"""The shipped parameters, whatever someone is trying out in the tree, and the plan of the paper's sizes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flowprior.config.presets import resolve
from flowprior.config.schema import Params
from flowprior.config.yaml12 import read_yaml
from flowprior.costs.facts import assumed
from flowprior.costs.stages import STAGES, count
from flowprior.costs.work import Work
from flowprior.experiments.planned import with_settings

from .project import write_project

Changed = Callable[[str, dict[str, Any]], Params]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """For small tensors: threads that wait for one another crawl."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the committed params.yaml and presets/; not to be changed."""
    return write_project(tmp_path_factory.mktemp("shipped"))


@pytest.fixture(scope="session")
def changed(shipped: Path) -> Changed:
    """The shipped parameters with another preset and changes by dotted key."""

    def change(preset: str, changes: dict[str, Any]) -> Params:
        tree = read_yaml(shipped / "params.yaml")
        return resolve(shipped, with_settings(tree, {"preset": preset, **changes})).params

    return change


@pytest.fixture(scope="session")
def imagenet(changed: Changed) -> dict[str, Work]:
    """The plan of the paper's sizes, by stage."""
    cfg = changed("imagenet", {})
    facts = assumed(cfg)
    return {stage: count(stage, cfg, facts) for stage in STAGES}
