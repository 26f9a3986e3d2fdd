"""What a fit takes: features of every kind, under every default of the process."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowprior import FlowPrior
from flowprior.core import rng

TINY: dict[str, Any] = {"dim": 4, "steps": 5, "width": 16, "depth": 1, "batch_vectors": 64}
X = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)


def state(prior: FlowPrior) -> list[Tensor]:
    """Its weights."""
    return [*prior.velocity.state_dict().values(), *prior.projection.tensors().values()]


def same(one: FlowPrior, two: FlowPrior) -> bool:
    """Whether two priors are equal bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(state(one), state(two), strict=True))


@pytest.fixture(scope="module")
def expected() -> FlowPrior:
    return FlowPrior.fit(torch.from_numpy(X), **TINY)


@pytest.mark.parametrize(
    "features",
    [
        X.astype(">f4"),
        X.astype(np.float64),
        np.asfortranarray(X),
        X[::-1][::-1],
        X.tolist(),
        np.broadcast_to(X, (500, 16)),
    ],
    ids=[
        "big-endian",
        "float64",
        "column by column",
        "strided",
        "lists",
        "read-only",
    ],
)
def test_the_same_numbers_give_the_same_prior(expected: FlowPrior, features: object) -> None:
    assert same(FlowPrior.fit(features, **TINY), expected)


def test_a_data_frame_of_numbers_is_taken(expected: FlowPrior) -> None:
    pandas = pytest.importorskip("pandas")
    assert same(FlowPrior.fit(pandas.DataFrame(X), **TINY), expected)
    words = pandas.DataFrame({"a": ["x"], "b": [1]})
    with pytest.raises(ValueError, match="features must be numbers"):
        FlowPrior.fit(words, **TINY)


def test_half_and_integer_features_are_taken() -> None:
    half = FlowPrior.fit(torch.from_numpy(X).half(), **TINY)
    assert same(half, FlowPrior.fit(X.astype(np.float16), **TINY))
    whole = (X * 10).round()
    assert same(FlowPrior.fit(whole.astype(np.int16), **TINY), FlowPrior.fit(whole, **TINY))


@contextmanager
def double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "circumstances",
    [double_by_default, torch.no_grad, torch.inference_mode, lambda: torch.device("meta")],
    ids=["float64 by default", "no_grad", "inference_mode", "another default device"],
)
def test_the_circumstances_of_the_process_change_nothing(
    expected: FlowPrior, circumstances: Any, tmp_path: Any
) -> None:
    """Nor when it is saved, loaded and asked there."""
    latents = torch.randn(8, 4, generator=rng.generator(0))
    generator = rng.generator(1)
    wanted = expected.alignment_loss(latents, generator), expected.nll(latents)
    with circumstances():
        prior = FlowPrior.fit(torch.from_numpy(X), **TINY)
        prior.save(tmp_path)
        again = FlowPrior.load(tmp_path)
        found = again.alignment_loss(latents, rng.generator(1)), again.nll(latents)
        assert prior.sample(3).dtype == torch.float32
    assert same(prior, expected)
    assert same(again, expected)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.float32(3), r"must be \[..., D\] and not empty, found \(\)"),
        (np.array([["a", "b"]]), "features must be numbers"),
        (np.array([["x", 1]], dtype=object), "features must be numbers"),
        ([[1, 2], [3]], "features must be numbers"),
        (X.astype(np.complex64), "features must be numbers"),
        (torch.zeros(3, 3, dtype=torch.complex64), "real numbers"),
        (torch.eye(3).to_sparse(), "dense"),
        (None, r"must be \[..., D\] and not empty, found \(\)"),
    ],
)
def test_what_are_no_features_is_an_error(features: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowPrior.fit(features, **TINY)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"time_groups": 0}, "time_groups must be at least 1, found 0"),
        ({"width": 0}, "width must be at least 1, found 0"),
        ({"depth": 0}, "depth must be at least 1, found 0"),
        ({"steps": 0}, "steps must be at least 1, found 0"),
        ({"lr": 0.0}, "lr must be above 0, found 0"),
        ({"lr": float("nan")}, "lr must be above 0, found nan"),
        ({"ema_decay": 1.5}, r"ema_decay must be from 0 to below 1, found 1\.5"),
    ],
)
def test_a_setting_out_of_range_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowPrior.fit(X, **{**TINY, **settings})


def test_a_mean_of_many_standard_deviations_is_as_good_as_none() -> None:
    """The flow models what is left when the mean is taken away, so that both fits are the same one, moved."""
    settings = TINY | {"dim": None, "steps": 40}
    features = np.random.default_rng(1).normal(size=(2000, 3)).astype(np.float32)
    features -= features.mean(0)
    here, there = (FlowPrior.fit(features + mean, **settings) for mean in (0.0, 20.0))
    latents = torch.from_numpy(features[:50])
    moved = 20 * there.projection.scale
    torch.testing.assert_close(there.nll(latents + moved), here.nll(latents), rtol=1e-3, atol=2e-3)
    assert there.targets is not None
    assert float(there.targets.mean()) == pytest.approx(moved, rel=1e-2)


def test_it_keeps_some_of_its_targets(expected: FlowPrior, tmp_path: Any) -> None:
    """All of a few; they are saved with it, and are what it was trained on."""
    targets = expected.targets
    assert targets is not None
    assert targets.shape == (500, 4)
    everything = {tuple(row) for row in expected.project(torch.from_numpy(X)).tolist()}
    assert {tuple(row) for row in targets.tolist()} == everything
    expected.save(tmp_path)
    assert torch.equal(FlowPrior.load(tmp_path).targets, targets)


def test_channels_of_features_may_be_on_any_axis() -> None:
    """One by one and in batches; where they could be on two axes, it is asked."""
    features = torch.randn(20, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    flat = features.movedim(1, -1).reshape(-1, 5)
    settings = {"dim": 3, "steps": 2, "width": 16, "depth": 1}
    plain = FlowPrior.fit(flat, **settings)
    for given in (features, features.numpy()):
        fitted = FlowPrior.fit(given, channel_dim=1, **settings)
        assert torch.equal(fitted.targets, plain.targets)
    stream = FlowPrior.fit(features.split(5), channel_dim=1, **settings)
    assert sorted(stream.targets.flatten().tolist()) == sorted(plain.targets.flatten().tolist())
    for given in (features, features.numpy(), features.split(5)):
        with pytest.raises(ValueError, match=r"look like \[b, D, h, w\].*channel_dim=1"):
            FlowPrior.fit(given, **settings)
    with pytest.raises(ValueError, match="channel_dim 7 is no axis"):
        FlowPrior.fit(features, channel_dim=7, **settings)
    assert FlowPrior.fit(features.movedim(1, -1), **settings).projection.in_dim == 5
