"""The shipped digits networks are small, good, whole, and trained on the split that they claim."""

import shutil

import pytest
import torch

from flowprior.core.io import (
    ArtifactError,
    file_digest,
    load_tensors,
    read_json,
    save_tensors,
    write_json,
)
from flowprior.encoders.shipped import (
    DIGITS_DIR,
    check_split,
    load_digits_network,
    open_digits_encoder,
)
from flowprior.images.digits import Digits

NETWORKS = ("semantic", "evaluation")
FACTS = read_json(DIGITS_DIR / "networks.json")


@pytest.fixture
def copy(tmp_path):
    """A copy of the package's networks that a test may damage."""
    return shutil.copytree(DIGITS_DIR, tmp_path / "digits")


@pytest.fixture(scope="module")
def validation():
    return Digits("validation", FACTS["split_seed"])


@pytest.fixture(scope="module")
def images(validation):
    return validation.images(range(len(validation)))


@pytest.mark.parametrize("which", NETWORKS)
def test_weights_take_less_than_300_kb(which):
    assert (DIGITS_DIR / f"{which}.safetensors").stat().st_size < 300_000


@pytest.mark.parametrize("which", NETWORKS)
def test_held_out_digits_are_recognised_as_well_as_recorded(which, validation, images):
    correct = load_digits_network(which)(images).argmax(-1) == validation.labels
    accuracy = correct.double().mean().item()
    assert accuracy >= 0.97
    # One image of slack: another CPU may round a tie differently.
    recorded = FACTS["networks"][which]["validation_accuracy"]
    assert accuracy == pytest.approx(recorded, abs=1.01 / len(validation))


@pytest.mark.parametrize("which", NETWORKS)
def test_networks_come_frozen_and_deterministic(which, images):
    network = load_digits_network(which)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    torch.testing.assert_close(network(images), network(images), rtol=0, atol=0)


@pytest.mark.parametrize(("which", "shape"), [("semantic", (16, 64)), ("evaluation", (64,))])
def test_features_have_their_shape_and_vary(which, shape, images):
    features = load_digits_network(which).features(images)
    assert features.shape == (len(images), *shape)
    assert list(shape) == FACTS["networks"][which]["feature_shape"]
    assert features.isfinite().all()
    assert features.std(dim=0).min() > 0.01  # no dead channel, at any token


def test_tokens_are_in_row_major_order(images):
    """Without the blocks, which mix patches, a patch moves its own token and no other."""
    network = load_digits_network("semantic")
    network.blocks = torch.nn.Identity()
    for token in range(network.num_tokens):
        row, column = 2 * (token // 4), 2 * (token % 4)
        changed = images.clone()
        changed[..., row : row + 2, column : column + 2] += 0.5
        change = (network.features(changed) - network.features(images)).norm(dim=-1).sum(dim=0)
        assert change.nonzero().tolist() == [[token]]


def test_head_completes_the_evaluation_network(images):
    network = load_digits_network("evaluation")
    torch.testing.assert_close(network.head(network.features(images)), network(images))


def test_the_two_networks_differ_in_architecture():
    semantic, evaluation = (
        {tuple(t.shape) for t in load_tensors(DIGITS_DIR / f"{which}.safetensors").values()}
        for which in NETWORKS
    )
    assert type(load_digits_network("semantic")) is not type(load_digits_network("evaluation"))
    assert not {s for s in semantic & evaluation if len(s) == 4}  # no convolution in common


@pytest.mark.parametrize("which", NETWORKS)
def test_a_flipped_bit_in_the_weights_is_found(which, copy):
    weights = copy / f"{which}.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match="is damaged: its sha256"):
        load_digits_network(which, directory=copy)


def test_missing_weights_name_the_script_that_makes_them(copy):
    (copy / "semantic.safetensors").unlink()
    with pytest.raises(
        ArtifactError, match=r"does not exist; run `python -m flowprior\.encoders\.train_shipped`"
    ):
        load_digits_network("semantic", directory=copy)


def test_weights_of_another_architecture_are_refused(copy):
    weights = copy / "semantic.safetensors"
    save_tensors(weights, {"stem.weight": torch.zeros(1)})
    facts = read_json(copy / "networks.json")
    facts["networks"]["semantic"]["sha256"] = file_digest(weights)
    write_json(copy / "networks.json", facts)
    with pytest.raises(ArtifactError, match="does not fit DigitsPatchNet"):
        load_digits_network("semantic", directory=copy)


def test_facts_without_a_key_are_refused(copy):
    write_json(copy / "networks.json", {})
    with pytest.raises(ArtifactError, match=r"lacks networks\.semantic\.sha256"):
        load_digits_network("semantic", directory=copy)


def test_an_unknown_network_is_refused():
    # A TypeError where the annotations are checked, as in this suite; a ValueError elsewhere.
    with pytest.raises((ValueError, TypeError), match="inception"):
        load_digits_network("inception")  # type: ignore[arg-type]


def test_the_split_of_the_networks_is_accepted():
    train = Digits("train", FACTS["split_seed"])
    check_split(train.digest)
    load_digits_network("semantic", train_digest=train.digest)


@pytest.mark.parametrize("which", NETWORKS)
def test_another_split_is_refused_with_the_way_out(which):
    other = Digits("train", FACTS["split_seed"] + 1)
    with pytest.raises(
        ValueError, match=r"python -m flowprior\.encoders\.train_shipped --split-seed N"
    ) as error:
        load_digits_network(which, train_digest=other.digest)
    assert other.digest in str(error.value)
    assert FACTS["train_digest"] in str(error.value)


def test_the_encoder_of_digits_gives_the_semantic_networks_tokens(images):
    encoder = open_digits_encoder(size=8, device=torch.device("cpu"))
    expected = load_digits_network("semantic").features(images)
    assert torch.equal(encoder(images), expected)
    assert encoder.dim == expected.shape[-1]
    assert encoder.digest == FACTS["networks"]["semantic"]["sha256"]


@pytest.mark.parametrize(("name", "size"), [("vit_tiny", 8), (None, 16)])
def test_the_encoder_of_digits_is_one_network_for_one_size(name, size):
    with pytest.raises(ValueError, match=r"prior\.encoder digits is one network for 8 x 8 digits"):
        open_digits_encoder(name, size=size, device=torch.device("cpu"))
