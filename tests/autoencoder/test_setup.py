"""From parameters to an autoencoder in training."""

import json

import pytest
import timm
import torch
from torch import nn

from flowprior.autoencoder.config import Autoencoder as Choice
from flowprior.autoencoder.config import TrainAutoencoder
from flowprior.autoencoder.registry import autoencoder_from
from flowprior.autoencoder.setup import (
    autoencoder_config,
    build_trainee,
    open_encoder,
    open_teacher,
)
from flowprior.autoencoder.softvq_terms import Teacher, Trainee
from flowprior.config.presets import resolve
from flowprior.core import rng
from flowprior.encoders.networks import TrainedTransformer
from flowprior.encoders.shipped import load_digits_network
from flowprior.images.digits import Digits

from ..config.committed import ROOT, tree

CPU = torch.device("cpu")
TEACHER = Teacher(lambda images: images.flatten(2).transpose(1, 2), 1, "digest")


def settings(**changes: object) -> TrainAutoencoder:
    """The section of the smoke preset; `changes` are to its keys, two underscores for a dot."""
    named = {f"train_ae__{name}": value for name, value in changes.items()}
    return resolve(ROOT, tree("smoke", **named)).params.train_ae


def choice(bottleneck: str = "plain") -> Choice:
    """The section `autoencoder`."""
    return Choice(model="vit", bottleneck=bottleneck, options={})


def trainee(
    seed: int = 0, teacher: Teacher | None = None, bottleneck: str = "plain", **changes: object
) -> Trainee:
    """An autoencoder for digits."""
    section = settings(**changes)
    config = autoencoder_config(choice(bottleneck), section, image_size=8, channels=1, latent_dim=4)
    return build_trainee(config, section, teacher, None, seed)


def test_a_config_is_json_and_builds_the_autoencoder_again() -> None:
    """The stages behind `train_ae` know nothing of its parameters."""
    section = settings()
    config = autoencoder_config(choice("softvq"), section, image_size=8, channels=1, latent_dim=4)
    rebuilt = autoencoder_from(json.loads(json.dumps(config)))
    built = build_trainee(config, section, None, None, 0).autoencoder
    rebuilt.load_state_dict(built.state_dict())
    assert config["shape"]["num_latents"] == section.num_latents
    assert config["codebooks"]["num_codes"] == section.softvq.num_codes


def test_equal_seeds_start_from_equal_weights_and_torchs_stream_does_not_matter() -> None:
    first = trainee().state_dict()
    torch.rand(3)
    for name, value in trainee().state_dict().items():
        assert torch.equal(value, first[name]), name
    name = "autoencoder.decoder.input.weight"
    assert not torch.equal(trainee(seed=1).state_dict()[name], first[name])


def test_there_is_a_head_where_there_is_a_teacher_and_it_moves_no_other_weight() -> None:
    alone, taught = trainee(), trainee(teacher=TEACHER)
    assert alone.head is None
    assert taught.head is not None
    assert taught.head.out_dim == TEACHER.dim
    for name, value in alone.state_dict().items():
        assert torch.equal(value, taught.state_dict()[name]), name


@pytest.mark.parametrize("on", [False, True])
def test_gradients_are_checkpointed_where_that_is_asked_for(on: bool) -> None:
    autoencoder = trainee(gradient_checkpointing=on).autoencoder
    assert autoencoder.encoder.gradient_checkpointing == on
    assert autoencoder.decoder.gradient_checkpointing == on


def test_an_encoder_starts_from_a_trained_transformer_where_one_is_given() -> None:
    """Its weights replace those of the seed; the decoder's are the seed's."""
    section = settings(layer_scale=0.1, num_heads=2)
    config = autoencoder_config(choice(), section, image_size=8, channels=1, latent_dim=4)
    with rng.scoped(7, "trained"):
        vit = timm.models.vision_transformer.VisionTransformer(
            img_size=8,
            patch_size=section.patch_size,
            in_chans=1,
            num_classes=0,
            global_pool="",
            embed_dim=section.width,
            depth=section.depth,
            num_heads=section.num_heads,
            init_values=0.1,
        )
    encoder = TrainedTransformer("tiny", vit, {"sha256": "x"})
    started = build_trainee(config, section, None, encoder, 0).autoencoder
    scratch = build_trainee(config, section, None, None, 0).autoencoder
    for name, value in started.encoder.vit.state_dict().items():
        assert torch.equal(value, vit.state_dict()[name]), name
    for name, value in started.decoder.state_dict().items():
        assert torch.equal(value, scratch.decoder.state_dict()[name]), name


@pytest.mark.parametrize(
    ("section", "method"),
    [
        (settings(gradient_checkpointing=True), "checkpoint_gradients"),
        (settings(), "start_from"),
    ],
    ids=["checkpointing", "encoder"],
)
def test_an_autoencoder_of_ones_own_without_what_a_parameter_asks_for_is_told(
    section: TrainAutoencoder, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither method is one that the protocol asks for."""
    monkeypatch.setattr("flowprior.autoencoder.setup.autoencoder_from", lambda _: nn.Linear(2, 2))
    encoder = TrainedTransformer("tiny", nn.Identity(), {"sha256": "x"})
    with pytest.raises(ValueError, match=f"needs an autoencoder with a method {method}"):
        build_trainee({}, section, None, None if method != "start_from" else encoder, 0)


def test_null_is_no_encoder_to_start_from() -> None:
    assert open_encoder(settings(), 8) is None


def test_softvq_on_digits_is_taught_by_their_semantic_network() -> None:
    """Which is installed; the features are those that the prior `semantic` has."""
    teacher = open_teacher(choice("softvq"), settings(), True, 8, 0, CPU)
    images = Digits("train", 0).images(range(5))
    assert torch.equal(teacher.features(images), load_digits_network("semantic").features(images))
    assert teacher.dim == 64
    assert len(teacher.digest) == 64


@pytest.mark.parametrize(("bottleneck", "weight"), [("plain", 0.1), ("kl", 0.1), ("softvq", 0.0)])
def test_others_have_no_teacher(bottleneck: str, weight: float) -> None:
    section = settings(softvq__representation_weight=weight)
    assert open_teacher(choice(bottleneck), section, True, 8, 0, CPU) is None
