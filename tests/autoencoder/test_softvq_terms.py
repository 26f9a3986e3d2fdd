"""What SoftVQ adds to the loss: each term where it is asked for, nothing where it is not."""

import pytest
import torch
from torch import Tensor

from flowprior.autoencoder.bottleneck import Codebooks
from flowprior.autoencoder.representation import RepresentationHead
from flowprior.autoencoder.shape import Shape
from flowprior.autoencoder.softvq import entropy_loss
from flowprior.autoencoder.softvq_terms import SoftVQTerms, Trainee
from flowprior.autoencoder.vit import build_autoencoder
from flowprior.core import rng
from flowprior.core.codes import Codes
from flowprior.core.optim import adamw

SHAPE = Shape(8, 1, 2, 4, 3, 16, 1, 2)


def trainee(bottleneck: str = "softvq", head: bool = True) -> Trainee:
    with rng.scoped(0, "trainee"):
        autoencoder = build_autoencoder(SHAPE, bottleneck, Codebooks(2, 5, 0.1))
        return Trainee(autoencoder, RepresentationHead(3, 8, 6) if head else None)


def normal(*shape: int, tag: str = "x") -> Tensor:
    return torch.randn(*shape, generator=rng.generator(0, tag))


DRAW = rng.Draw(rng.generator(0), 2)


def test_without_codebooks_and_teacher_nothing_is_added() -> None:
    images = normal(2, 1, 8, 8)
    restored, codes, disagreement = trainee("plain", head=False)(images)
    assert disagreement is None
    loss, logged = SoftVQTerms(0.01, 0.1)(codes, disagreement, DRAW)
    assert float(loss) == 0
    assert logged == {}
    assert restored.shape == images.shape


def test_the_loss_is_the_weighed_sum_of_both_terms() -> None:
    model, images, features = trainee(), normal(2, 1, 8, 8), normal(2, 8, 6, tag="features")
    _, codes, disagreement = model(images, None, features)
    assert disagreement == model.head(codes.latents, features)
    loss, logged = SoftVQTerms(0.25, 0.5)(codes, disagreement, DRAW)
    entropy, _ = entropy_loss(codes.logits, lambda rows: rows)
    torch.testing.assert_close(loss, 0.25 * entropy + 0.5 * disagreement)
    assert set(logged) == {"representation", "assignment_entropy", "code_perplexity"}


def test_a_weight_of_0_leaves_the_entropy_uncomputed() -> None:
    _, codes, _ = trainee()(normal(2, 1, 8, 8))
    poisoned = Codes(codes.latents, codes.mean, None, torch.full_like(codes.logits, torch.nan))
    loss, logged = SoftVQTerms(0.0, 0.1)(poisoned, None, DRAW)
    assert float(loss) == 0
    assert not logged


def test_the_heads_loss_reaches_head_and_encoder_and_not_the_decoder() -> None:
    model = trainee()
    _, _, disagreement = model(normal(2, 1, 8, 8), None, normal(2, 8, 6, tag="features"))
    disagreement.backward()
    for name, parameter in model.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert reached != name.startswith("autoencoder.decoder."), name


@pytest.mark.parametrize("bottleneck", ["plain", "kl", "softvq"])
def test_codes_are_spared_the_decay_and_nothing_else_is(bottleneck: str) -> None:
    model = trainee(bottleneck)
    groups = adamw(model, 0.1, (0.9, 0.95), 0.5, model.undecayed).param_groups
    spared = [p for group in groups if group["weight_decay"] == 0 for p in group["params"]]
    matrices = {id(p) for p in spared if p.ndim >= 2}
    expected = {id(model.autoencoder.bottleneck.codebooks)} if bottleneck == "softvq" else set()
    assert matrices == expected
