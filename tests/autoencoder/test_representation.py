"""The sample-level alignment: a cosine's closed forms, which token answers for which features, who learns."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flowprior.autoencoder.representation import RepresentationHead
from flowprior.core import rng

LIKE = torch.zeros(1, dtype=torch.float64)
B, N, DIM, WIDTH, OUT, TIMES = 2, 3, 4, 8, 6, 5


def normal(*shape: int, tag: str = "x") -> Tensor:
    """Fixed standard normal numbers, float32."""
    return rng.normal(shape, LIKE, rng.generator(0, tag)).float()


def small() -> RepresentationHead:
    """A small head, the same at every call."""
    with rng.scoped(0, "head"):
        return RepresentationHead(DIM, WIDTH, OUT)


def predictions(head: RepresentationHead, latents: Tensor) -> Tensor:
    """What the head predicts, with its layers written out."""
    first, _, second, _, third = head.layers
    x = latents
    for layer in (first, second):
        x = x @ layer.weight.T + layer.bias
        x = x * torch.sigmoid(x)
    return x @ third.weight.T + third.bias


def repeated(head: RepresentationHead, latents: Tensor) -> Tensor:
    """The predictions for all features: each token's, `TIMES` in a row."""
    rows = predictions(head, latents)
    return torch.stack([rows[:, p // TIMES] for p in range(N * TIMES)], dim=1)


def test_features_as_predicted_have_minus_1_whatever_their_norms() -> None:
    head, latents = small(), normal(B, N, DIM)
    norms = normal(B, N * TIMES, 1, tag="norms").exp()
    features = repeated(head, latents) * norms
    assert head(latents, features).item() == pytest.approx(-1, abs=1e-6)
    assert head(latents, -features).item() == pytest.approx(1, abs=1e-6)


def test_features_at_right_angles_to_the_prediction_have_0() -> None:
    head, latents = small(), normal(B, N, DIM)
    predicted = F.normalize(repeated(head, latents), dim=-1)
    features = normal(B, N * TIMES, OUT)
    features = features - (features * predicted).sum(-1, keepdim=True) * predicted
    assert head(latents, features).item() == pytest.approx(0, abs=1e-6)


def test_the_loss_is_the_mean_negative_cosine_of_all_features() -> None:
    """With the repetition written out."""
    head, latents, features = small(), normal(B, N, DIM), normal(B, N * TIMES, OUT, tag="features")
    expected = -F.cosine_similarity(repeated(head, latents), features, dim=-1).mean()
    torch.testing.assert_close(head(latents, features), expected)


def test_a_token_answers_for_consecutive_features() -> None:
    """Features in the tokens' order, over and over, are not what the tokens are compared with."""
    head, latents = small(), normal(B, N, DIM)
    predicted = predictions(head, latents)
    in_a_row = head(latents, predicted.repeat_interleave(TIMES, dim=1))
    round_robin = head(latents, predicted.repeat(1, TIMES, 1))
    assert in_a_row.item() == pytest.approx(-1, abs=1e-6)
    assert round_robin.item() > -0.999
    latents = latents.detach().requires_grad_()
    for i in range(N):
        features = torch.zeros(B, N * TIMES, OUT)
        features[:, i * TIMES : (i + 1) * TIMES] = 1
        (grad,) = torch.autograd.grad(head(latents, features), latents)
        assert [bool(x) for x in grad.abs().amax((0, 2)) > 0] == [j == i for j in range(N)]


def test_as_many_features_as_tokens_are_compared_one_to_one() -> None:
    head, latents = small(), normal(B, N, DIM)
    features = normal(B, N, OUT, tag="features")
    expected = -F.cosine_similarity(predictions(head, latents), features, dim=-1).mean()
    torch.testing.assert_close(head(latents, features), expected)


def test_gradients_reach_the_latents_and_the_head_and_never_the_features() -> None:
    head = small()
    latents = normal(B, N, DIM).requires_grad_()
    features = normal(B, N * TIMES, OUT, tag="features").requires_grad_()
    head(latents, features).backward()
    assert features.grad is None
    assert latents.grad is not None
    assert (latents.grad.abs().amax(-1) > 0).all()
    for parameter in head.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


def test_gradients_are_those_of_the_repetition_written_out() -> None:
    head = small()
    latents = normal(B, N, DIM).requires_grad_()
    features = normal(B, N * TIMES, OUT, tag="features")
    at = [latents, *head.parameters()]
    expected = -F.cosine_similarity(repeated(head, latents), features, dim=-1).mean()
    found = torch.autograd.grad(head(latents, features), at)
    for one, other in zip(found, torch.autograd.grad(expected, at), strict=True):
        torch.testing.assert_close(one, other)


def test_features_of_zeros_have_a_finite_gradient() -> None:
    head, latents = small(), normal(B, N, DIM).requires_grad_()
    loss = head(latents, torch.zeros(B, N * TIMES, OUT))
    (grad,) = torch.autograd.grad(loss, latents)
    assert loss.item() == 0
    assert torch.isfinite(grad).all()


def test_under_autocast_cosines_are_float32() -> None:
    head, latents, features = small(), normal(B, N, DIM), normal(B, N * TIMES, OUT, tag="features")
    with torch.autocast("cpu", torch.bfloat16):
        predicted = head.layers(latents)
        loss = head(latents, features.bfloat16())
    assert predicted.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    rows = predicted.float().repeat_interleave(TIMES, dim=1)
    expected = -F.cosine_similarity(rows, features.bfloat16().float(), dim=-1).mean()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)


def test_the_papers_head_has_two_million_parameters() -> None:
    """softvq-l-64: 32 to 1024 to 1024 to DINOv2-L's 1024."""
    with torch.device("meta"):
        head = RepresentationHead(32, 1024, 1024)
    assert sum(p.numel() for p in head.parameters()) == 33_792 + 2 * 1_049_600


def test_equal_seeds_give_equal_losses() -> None:
    latents, features = normal(B, N, DIM), normal(B, N * TIMES, OUT, tag="features")
    assert torch.equal(small()(latents, features), small()(latents, features))


def test_features_that_the_tokens_do_not_divide_are_told() -> None:
    with pytest.raises(ValueError, match="7 features cannot be shared out evenly among 3"):
        small()(normal(B, N, DIM), normal(B, 7, OUT))


def test_features_of_another_encoder_are_told() -> None:
    with pytest.raises(ValueError, match="features have 5 channels, the head predicts 6"):
        small()(normal(B, N, DIM), normal(B, N * TIMES, 5))
