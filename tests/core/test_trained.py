"""Trained models there and back, and what is refused on the way."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from flowprior.core import rng
from flowprior.core.artifacts import MANIFEST, write_manifest
from flowprior.core.io import ArtifactError, load_tensors, read_json, save_tensors, write_json
from flowprior.core.trained import Trained, load_trained, save_trained

from ..strangers import EDITS, FUZZ, edited, no_hang, same_or_refused
from .test_shards import MAKER

pytestmark = pytest.mark.usefixtures("never_unpickled")

KIND = "toy"
MADE_BY = "the stage `train_toy`"
CONFIG = {"shape": {"width": 3, "depth": 1}, "mean": [0.1, 1 / 3], "std": 1e-7}
PROVENANCE = {"config": "c", "inputs": {"latents": "l"}, "packages": {"torch": "0"}}


def network(seed: int = 0, width: int = 3) -> nn.Module:
    """A module with parameters and a buffer."""
    with rng.scoped(seed):
        return nn.Sequential(nn.Linear(width, 2), nn.BatchNorm1d(2))


def state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of what a module holds."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    """Whether two states are the same to the bit, types included."""
    return one.keys() == two.keys() and all(
        one[name].dtype == two[name].dtype and torch.equal(one[name], two[name]) for name in one
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A model that was saved."""
    path = tmp_path / "toy"
    save_trained(path, KIND, network(), CONFIG, PROVENANCE)
    return path


def load(path: Path) -> Trained:
    """Load it."""
    return load_trained(path, KIND, MADE_BY)


def test_a_plugins_options_need_not_be_sizes(tmp_path: Path) -> None:
    """Any number may stand there, while a size that exceeds the weights is refused."""
    path = tmp_path / "toy"
    options = {"offset": -3, "period": 10**9, "inner": {"depths": [10**9]}}
    save_trained(path, KIND, network(), CONFIG | {"options": options}, PROVENANCE)
    assert load(path).build(lambda _: network(), path) is not None
    save_trained(path, KIND, network(), CONFIG | {"period": 10**9}, PROVENANCE)
    with pytest.raises(ArtifactError, match="a size of 1000000000"):
        load(path).build(lambda _: network(), path)


def test_what_is_saved_is_loaded_to_the_bit(saved: Path) -> None:
    """Config, parameters and buffers, integers among them."""
    trained = load(saved)
    assert trained.config == CONFIG
    assert equal(trained.weights, state(network()))
    assert equal(state(trained.into(network(1), saved)), state(network()))


def test_a_loaded_module_is_frozen_and_in_eval_mode(saved: Path) -> None:
    """Ready to use: no gradient, no batch statistics; the module itself is returned."""
    module = network(1).train()
    loaded = load(saved).into(module, saved)
    assert loaded is module
    assert not any(part.training for part in loaded.modules())
    assert not any(p.requires_grad for p in loaded.parameters())


def test_equal_models_are_equal_bytes(saved: Path, tmp_path: Path) -> None:
    """And have one digest; other weights, config or provenance have another."""
    digest = load(saved).digest
    variants = {
        "same": (network(), CONFIG, PROVENANCE),
        "weights": (network(1), CONFIG, PROVENANCE),
        "config": (network(), CONFIG | {"std": 2e-7}, PROVENANCE),
        "provenance": (network(), CONFIG, PROVENANCE | {"config": "d"}),
    }
    for name, (module, config, provenance) in variants.items():
        save_trained(tmp_path / name, KIND, module, config, provenance)
        assert (load(tmp_path / name).digest == digest) == (name == "same"), name
    for file in saved.iterdir():
        assert file.read_bytes() == (tmp_path / "same" / file.name).read_bytes()


def test_the_manifest_says_what_it_was_made_from(saved: Path) -> None:
    """Kind and provenance, and the hash of every file."""
    manifest = read_json(saved / MANIFEST)
    assert manifest["kind"] == KIND
    assert manifest["provenance"] == PROVENANCE
    assert set(manifest["files"]) == {"toy.safetensors", "config.json"}


def test_saving_replaces_what_was_there(saved: Path) -> None:
    """Nothing of the old one remains, and no scratch beside it."""
    save_trained(saved, KIND, network(1), {"other": 1}, PROVENANCE)
    assert load(saved).config == {"other": 1}
    assert equal(load(saved).weights, state(network(1)))
    assert [path.name for path in saved.parent.iterdir()] == ["toy"]


def test_a_save_that_fails_leaves_the_old_one(saved: Path) -> None:
    """A config that JSON does not take is noticed before anything is replaced."""
    with pytest.raises(ValueError, match="nan"):
        save_trained(saved, KIND, network(1), {"std": float("nan")}, PROVENANCE)
    assert equal(load(saved).weights, state(network()))
    assert [path.name for path in saved.parent.iterdir()] == ["toy"]


def test_training_goes_on_after_saving(saved: Path) -> None:
    """The module that was saved keeps its mode, its gradients and its weights."""
    module = network().train()
    save_trained(saved, KIND, module, CONFIG, PROVENANCE)
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    assert equal(state(module), state(network()))


# --- what is refused --------------------------------------------------------------------------------


def test_a_model_that_is_absent_names_the_stage_that_makes_it(tmp_path: Path) -> None:
    """So that one knows what to run."""
    with pytest.raises(ArtifactError, match="does not exist; it is made by the stage `train_toy`"):
        load(tmp_path / "gone")


def test_a_model_of_another_kind_is_refused(saved: Path) -> None:
    """An autoencoder is not a MAR."""
    with pytest.raises(ArtifactError, match="describes 'toy', expected 'other'"):
        load_trained(saved, "other", MADE_BY)


@pytest.mark.parametrize("name", ["toy.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_named(saved: Path, name: str, damage: str) -> None:
    """A flipped bit, a missing byte, a missing file: the message says which file and who makes it."""
    file = saved / name
    if damage == "remove":
        file.unlink()
    elif damage == "truncate":
        os.truncate(file, file.stat().st_size - 1)
    else:
        content = bytearray(file.read_bytes())
        content[-2] ^= 1
        file.write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name} .*made by the stage `train_toy`"):
        load(saved)


def test_weights_of_another_shape_do_not_fit(saved: Path) -> None:
    """The message names the folder and the tensor."""
    with pytest.raises(
        ArtifactError, match=r"(?s)toy does not hold the model it describes: .*0\.weight"
    ):
        load(saved).into(network(width=4), saved)


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_missing_and_unexpected_weights_do_not_fit(saved: Path, change: str) -> None:
    """Loading is strict."""
    weights = load_tensors(saved / "toy.safetensors")
    if change == "missing":
        del weights["0.bias"]
    else:
        weights["2.bias"] = torch.zeros(2)
    trained = load(saved)._replace(weights=weights)
    with pytest.raises(ArtifactError, match=r"(?i)" + change):
        trained.into(network(), saved)


def test_weights_without_a_manifest_are_not_loaded(tmp_path: Path) -> None:
    """They are an unfinished save."""
    folder = tmp_path / "toy"
    folder.mkdir()
    save_tensors(folder / "toy.safetensors", network().state_dict())
    with pytest.raises(ArtifactError, match="never finished"):
        load(folder)


@pytest.mark.parametrize("hidden", ["config.json", "toy.safetensors"])
def test_a_file_that_the_manifest_does_not_name_is_not_read(tmp_path: Path, hidden: str) -> None:
    """It was not verified: it may be anything, a pipe too."""
    save_trained(tmp_path / "toy", "toy", torch.nn.Linear(2, 2), {"a": 1}, {"inputs": {}})
    manifest = read_json(tmp_path / "toy" / MANIFEST)
    del manifest["files"][hidden]
    write_json(tmp_path / "toy" / MANIFEST, manifest)
    (tmp_path / "toy" / hidden).unlink()
    os.mkfifo(tmp_path / "toy" / hidden)
    with no_hang(), pytest.raises(ArtifactError, match=f"{hidden} is not among the files"):
        load_trained(tmp_path / "toy", "toy", MAKER)


@pytest.mark.parametrize(
    ("provenance", "config"), [({}, {}), ({"inputs": 1}, {}), ({"inputs": {}}, [])], ids=str
)
def test_a_trained_model_without_inputs_or_config_is_refused(
    tmp_path: Path, provenance: dict[str, Any], config: Any
) -> None:
    save_tensors(tmp_path / "toy.safetensors", {"a": torch.zeros(1)})
    write_json(tmp_path / "config.json", config)
    write_manifest(tmp_path, kind="toy", provenance=provenance)
    with pytest.raises(ArtifactError, match=r"has no inputs in its .* is no object"):
        load_trained(tmp_path, "toy", MAKER)


TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.int64)}


@settings(FUZZ, max_examples=100)
@given(edits=EDITS)
def test_a_trained_model_of_other_facts_is_refused_or_loaded(
    edits: list[Any],
) -> None:
    """Whatever its manifest says."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_tensors(root / "toy.safetensors", TENSORS)
        write_json(root / "config.json", {"shape": {"width": 3}})
        write_manifest(root, kind="toy", provenance={"inputs": {"x": "y"}})
        (root / MANIFEST).write_text(json.dumps(edited(read_json(root / MANIFEST), edits)))
        same_or_refused(
            lambda: load_trained(root, "toy", "a test").weights.keys(), TENSORS.keys(), folder
        )
