"""Sizes that the weights do not fill are refused before they take memory."""

from pathlib import Path
from typing import Any

import pytest
import torch

from flowprior.autoencoder.bottleneck import Codebooks
from flowprior.autoencoder.registry import autoencoder_from
from flowprior.autoencoder.shape import Shape
from flowprior.autoencoder.vit import build_autoencoder
from flowprior.core import rng
from flowprior.core.artifacts import write_manifest
from flowprior.core.io import ArtifactError, read_json, write_json
from flowprior.core.trained import Trained
from flowprior.flow.velocity import VelocityMLP
from flowprior.generators.registry import generator_from
from flowprior.mar.model import MAR
from flowprior.mar.shape import MARShape
from flowprior.prior import files as prior_module
from flowprior.prior.flow_prior import FlowPrior

from ..strangers import no_hang


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved prior."""
    path = tmp_path_factory.mktemp("hostile") / "prior"
    features = torch.randn(64, 6, generator=rng.generator(0, "hostile"))
    FlowPrior.fit(features, dim=3, steps=1, width=8, depth=1).save(path)
    return path


HUGE = [10**6, 10**9, 10**30]


def test_sizes_are_tried_without_memory(
    prior: Path, tmp_path: Path, mar: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes that memory could hold, and that are wrong, are refused before it is asked for them."""
    devices = []

    class Watched(VelocityMLP):
        def __init__(self, *sizes: Any) -> None:
            devices.append(torch.get_default_device().type)
            super().__init__(*sizes)

    def make(config: dict[str, Any]) -> MAR:
        devices.append(torch.get_default_device().type)
        return generator_from(config)

    for file in prior.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write_json(tmp_path / "config.json", read_json(prior / "config.json") | {"width": 9})
    write_manifest(tmp_path, kind="flow_prior", provenance={})
    monkeypatch.setattr(prior_module, "VelocityMLP", Watched)
    with pytest.raises(ArtifactError, match="does not hold the prior it describes"):
        FlowPrior.load(tmp_path)
    with pytest.raises(ArtifactError, match="does not hold the model it describes"):
        with_size(mar, "shape", "width", 20).build(make, Path("mar"))
    assert devices == ["meta", "meta"]


AE = {
    "shape": Shape(8, 1, 2, 4, 3, 16, 1, 2)._asdict(),
    "bottleneck": "softvq",
    "codebooks": Codebooks(2, 8, 0.1)._asdict(),
}


MAR_SHAPE = MARShape(4, 3, 10, 16, 1, 1, 2, 2, 16, 1, 0.1)._asdict()


@pytest.fixture(scope="module")
def autoencoder() -> Trained:
    """An autoencoder as `load_trained` gives it."""
    with rng.scoped(0):
        module = build_autoencoder(Shape(**AE["shape"]), "softvq", Codebooks(2, 8, 0.1))
    return Trained(AE, module.state_dict(), "", {})


@pytest.fixture(scope="module")
def mar() -> Trained:
    """A MAR as `load_trained` gives it."""
    with rng.scoped(0):
        module = MAR(MARShape(**MAR_SHAPE))
    return Trained({"model": "mar", "sizes": {"shape": MAR_SHAPE}}, module.state_dict(), "", {})


def with_size(trained: Trained, part: str, name: str, size: Any) -> Trained:
    """Another size in a part of the config; of a generator's, the part is in its `sizes`."""
    config = trained.config.get("sizes", trained.config)
    config = config | {part: config[part] | {name: size}}
    if "sizes" in trained.config:
        config = trained.config | {"sizes": config}
    return trained._replace(config=config)


@pytest.mark.parametrize("size", [10**6, 10**12, 10**30, -1, 0, "8", None, [10**12]])
@pytest.mark.parametrize("name", [*Shape._fields[:-1], "what"])
def test_an_autoencoder_that_its_weights_do_not_fill_is_refused(
    autoencoder: Trained, name: str, size: Any
) -> None:
    """Before it takes memory, whatever the config says; ten to the twelfth would be terabytes."""
    wrong = with_size(autoencoder, "shape", name, size)
    with no_hang(), pytest.raises(ArtifactError, match="ae does not hold the model it describes"):
        wrong.build(autoencoder_from, Path("ae"))


@pytest.mark.parametrize(("part", "name"), [("codebooks", "num_codes"), ("codebooks", "what")])
def test_codebooks_that_the_weights_do_not_fill_are_refused(
    autoencoder: Trained, part: str, name: str
) -> None:
    with no_hang(), pytest.raises(ArtifactError, match="does not hold the model"):
        with_size(autoencoder, part, name, 10**12).build(autoencoder_from, Path("ae"))


@pytest.mark.parametrize("size", HUGE)
@pytest.mark.parametrize("name", [n for n in MARShape._fields if n not in ("num_heads", "dropout")])
def test_a_mar_that_its_weights_do_not_fill_is_refused(mar: Trained, name: str, size: int) -> None:
    with no_hang(), pytest.raises(ArtifactError, match="mar does not hold the model it describes"):
        with_size(mar, "shape", name, size).build(generator_from, Path("mar"))


def test_depths_below_the_number_of_weights_are_not_built_to_the_end(mar: Trained) -> None:
    """Modules take memory and time on the meta device too."""
    count = sum(tensor.numel() for tensor in mar.weights.values())
    with no_hang(), pytest.raises(ArtifactError, match="far more than the"):
        with_size(mar, "shape", "encoder_depth", count - 1).build(generator_from, Path("mar"))


def test_a_model_of_many_parameters_can_be_built_afterwards(mar: Trained) -> None:
    """The count ends with the check."""
    with pytest.raises(ArtifactError):
        with_size(mar, "shape", "encoder_depth", 999).build(generator_from, Path("mar"))
    assert len(list(MAR(MARShape(**MAR_SHAPE | {"encoder_depth": 40})).parameters())) > 400


def test_what_is_built_is_what_was_saved(autoencoder: Trained, mar: Trained) -> None:
    """To the bit, on the CPU, frozen; and torch's stream moves as if it had been built once."""
    for trained, make in ((autoencoder, autoencoder_from), (mar, generator_from)):
        torch.manual_seed(0)
        built = trained.build(make, Path("x"))
        after = torch.get_rng_state()
        torch.manual_seed(0)
        once = trained.into(make(trained.config), Path("x"))
        assert torch.equal(torch.get_rng_state(), after)
        assert built.state_dict().keys() == once.state_dict().keys()
        for name, value in built.state_dict().items():
            assert value.device.type == "cpu"
            assert torch.equal(value, trained.weights[name])
        assert not any(p.requires_grad for p in built.parameters())
        assert not built.training
