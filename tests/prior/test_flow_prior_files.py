"""Files of priors from strangers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from flowprior.core import rng
from flowprior.core.artifacts import write_manifest
from flowprior.core.io import ArtifactError, read_json, write_json
from flowprior.prior.flow_prior import FlowPrior

from ..strangers import EDITS, FUZZ, copied, edited, no_hang, replace, same_or_refused

pytestmark = pytest.mark.usefixtures("never_unpickled")


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved prior."""
    path = tmp_path_factory.mktemp("hostile") / "prior"
    features = torch.randn(64, 6, generator=rng.generator(0, "hostile"))
    FlowPrior.fit(features, dim=3, steps=1, width=8, depth=1).save(path)
    return path


HUGE = [10**6, 10**9, 10**30]


@pytest.mark.parametrize("size", HUGE)
@pytest.mark.parametrize("name", ["dim", "width", "depth"])
def test_a_prior_that_would_take_terabytes_is_refused_before_it_is_built(
    prior: Path, tmp_path: Path, name: str, size: int
) -> None:
    """The sizes are a stranger's, their sum is not the weights'."""
    for file in prior.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write_json(tmp_path / "config.json", read_json(prior / "config.json") | {name: size})
    write_manifest(tmp_path, kind="flow_prior", provenance={})
    with no_hang(), pytest.raises(ArtifactError, match="does not hold the prior it describes"):
        FlowPrior.load(tmp_path)


@settings(FUZZ, max_examples=100)
@given(edits=EDITS)
def test_a_prior_of_other_settings_is_refused_or_loaded(prior: Path, edits: list[Any]) -> None:
    """Sizes of a billion, of other types, or none."""
    with copied(prior) as root:
        replace(root / "config.json", json.dumps(edited(read_json(prior / "config.json"), edits)))
        write_manifest(root, kind="flow_prior", provenance={})
        same_or_refused(lambda: FlowPrior.load(root).dim, 3, str(root))


def test_an_unchanged_prior_is_loaded(prior: Path) -> None:
    """What the tests above start from is sound."""
    assert FlowPrior.load(prior).dim == 3
