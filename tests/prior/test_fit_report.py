"""A fit says how good it is, in words that its numbers bear out; and takes features as they come."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowprior import FlowPrior
from flowprior.prior import features as module
from flowprior.prior.features import gathered
from flowprior.prior.fit_report import FitReport, _word

from .targets import SETS

SMALL: dict[str, Any] = {"steps": 60, "width": 32, "depth": 1, "batch_vectors": 256}


def draw(name: str, n: int, seed: int = 0) -> Tensor:
    """Features of a kind."""
    return torch.from_numpy(SETS[name](np.random.default_rng(seed), n).astype(np.float32))


@pytest.fixture(scope="module")
def fitted() -> FlowPrior:
    """Of a Gaussian, which is easy."""
    return FlowPrior.fit(draw("Gaussian", 4000), **SMALL)


def test_an_easy_fit_is_good_and_its_numbers_say_so(fitted: FlowPrior) -> None:
    found = fitted.fitted
    assert found is not None
    assert found.verdict == "good"
    assert found.advice == ""
    assert found.num_held_out == 400
    assert found.c2st_accuracy == pytest.approx(0.5, abs=4 * found.c2st_sd)
    assert found.nll_nats == pytest.approx(found.gaussian_nll_nats, abs=0.1)
    # A Gaussian's loss is the least that there is for one; none is below the floor.
    assert found.floor_loss < found.held_out_loss
    assert found.held_out_loss == pytest.approx(found.gaussian_loss, rel=0.05)


def test_a_fit_of_few_steps_is_not_good_and_says_what_helps() -> None:
    found = FlowPrior.fit(draw("two moons", 4000), **(SMALL | {"steps": 3})).fitted
    assert found is not None
    assert found.verdict in ("rough", "poor")
    assert "more steps" in found.advice
    assert str(found).splitlines()[-1].startswith("  what helps: more steps")


def test_a_fit_that_learns_by_heart_stops_and_keeps_what_was_good(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Hundreds of vectors in 16 dims, and a network of many more weights."""
    features = draw("Gaussian", 800)[:, :16]
    wide = {"steps": 1500, "width": 256, "depth": 2, "batch_vectors": 256, "lr": 3e-3}
    found = FlowPrior.fit(features, progress=True, **wide).fitted
    assert found is not None
    made = [int(step) for step in re.findall(r"(\d+)/1500", capsys.readouterr().err)]
    assert found.steps < 1500
    assert max(made) < 1500


@pytest.mark.parametrize(
    ("accuracy", "nll", "gaussian", "word"),
    [
        (0.5, 10.0, 10.0, "good"),
        (0.53, -5.0, 10.0, "good"),
        (0.56, 10.0, 10.0, "rough"),
        (0.5, 13.0, 10.0, "rough"),
        (0.7, 10.0, 10.0, "poor"),
        (0.5, float("nan"), 10.0, "poor"),
    ],
)
def test_the_word_follows_from_the_numbers(
    accuracy: float, nll: float, gaussian: float, word: str
) -> None:
    assert _word(accuracy, 0.005, nll, gaussian) == word


def test_a_report_is_saved_with_the_prior(fitted: FlowPrior, tmp_path: Any) -> None:
    fitted.save(tmp_path / "prior")
    assert FlowPrior.load(tmp_path / "prior").fitted == fitted.fitted


def test_few_features_are_fitted_without_a_report() -> None:
    """Nothing is held out of them, as nothing is where that is not wanted."""
    prior = FlowPrior.fit(draw("Gaussian", 150), **SMALL)
    assert prior.fitted is None
    assert prior.targets is not None
    assert len(prior.targets) == 150
    assert FlowPrior.fit(draw("Gaussian", 400), hold_out=False, **SMALL).fitted is None


def test_progress_has_rate_time_left_and_the_outcome(capsys: pytest.CaptureFixture[str]) -> None:
    """Where it is asked for; nothing is said by default where nobody watches."""
    features = draw("Gaussian", 400)
    FlowPrior.fit(features, **SMALL)
    assert capsys.readouterr().err == ""
    FlowPrior.fit(features, progress=True, **SMALL)
    said = capsys.readouterr().err
    assert re.search(r"flow prior: 60/60  \S+ steps/s  0 s left  weighted held-out loss \d", said)
    assert "flow prior: good" in said


# --- features in batches ----------------------------------------------------------------------------


def batches(features: Tensor, size: int = 64) -> Iterator[Tensor]:
    """One after the other, and then no more."""
    yield from features.split(size)


def test_a_stream_is_fitted_as_the_same_features_at_once() -> None:
    features = draw("Gaussian", 600)
    stream = FlowPrior.fit(batches(features), dim=4, operator="pca", **SMALL)
    whole = FlowPrior.fit(features, dim=4, operator="pca", **SMALL)
    torch.testing.assert_close(stream.projection.matrix, whole.projection.matrix)
    assert stream.fitted == whole.fitted


def test_a_long_stream_is_a_fair_sample_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each vector stays with equal probability, and the moments are those of all."""
    monkeypatch.setattr(module, "KEPT_VALUES", 2000)
    monkeypatch.setattr(module, "WAITING_VALUES", 500)
    most = 0

    def stream() -> Iterator[np.ndarray]:
        for start in range(0, 100_000, 100):
            yield np.stack([np.arange(start, start + 100.0), np.ones(100)], 1)

    least = module._least

    def spy(kept: list[Tensor], keys: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        nonlocal most
        most = max(most, sum(part.numel() for part in kept))
        return least(kept, keys)

    monkeypatch.setattr(module, "_least", spy)
    found = gathered(stream(), None, 0)
    assert found.vectors.shape == (1000, 2)
    assert most <= 2000 + 500 + 200
    assert found.moments.count == 100_000
    assert float(found.moments.mean[0]) == pytest.approx(49_999.5)
    kept = found.vectors[:, 0]
    # Uniform on 0 .. 99 999: within four standard errors of a thousand.
    assert float(kept.mean()) == pytest.approx(49_999.5, abs=4 * 28_868 / 1000**0.5)
    assert len(kept.unique()) == 1000


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (iter([]), "the stream is empty"),
        (iter([(torch.zeros(4, 2), torch.zeros(4))]), "batch 0 of the features is a tuple"),
        (
            iter([torch.randn(4, 2), torch.randn(4, 3)]),
            "batch 1 .* 3 channels, those before have 2",
        ),
        (iter([torch.full((4, 2), torch.nan)]), "NaN or infinite"),
    ],
)
def test_a_stream_of_something_else_is_an_error(stream: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowPrior.fit(stream, **SMALL)


def test_a_stream_that_breaks_off_leaves_nothing_behind() -> None:
    def broken() -> Iterator[Tensor]:
        yield torch.randn(10, 2)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        FlowPrior.fit(broken(), **SMALL)


def test_the_order_of_the_features_does_not_matter_to_the_report() -> None:
    """Sorted by class, as data often is: the report compares with targets of all kinds."""
    shuffled = draw("mixture", 4000)
    ordered = shuffled[shuffled[:, 0].argsort()]
    one, two = (FlowPrior.fit(features, **SMALL).fitted for features in (shuffled, ordered))
    assert one is not None
    assert two is not None
    assert two.c2st_accuracy == pytest.approx(one.c2st_accuracy, abs=0.04)
    assert two.floor_loss == pytest.approx(one.floor_loss, rel=0.1)
    assert two.train_loss == pytest.approx(one.train_loss, rel=0.1)


def test_a_report_that_holds_no_number_can_be_saved(fitted: FlowPrior, tmp_path: Any) -> None:
    assert fitted.fitted is not None
    strange = FlowPrior(
        fitted.velocity,
        fitted.projection,
        targets=fitted.targets,
        fitted=fitted.fitted._replace(verdict="poor", nll_nats=float("inf")),
    )
    strange.save(tmp_path / "prior")
    found = FlowPrior.load(tmp_path / "prior").fitted
    assert found is not None
    assert np.isnan(found.nll_nats)
    assert found.verdict == "poor"


def test_batches_in_one_memory_or_in_a_list_are_taken_one_by_one() -> None:
    """A loader may fill the same memory again and again, and the last batch may be smaller."""
    features = draw("Gaussian", 300)

    def reused() -> Iterator[Tensor]:
        memory = torch.empty(50, features.shape[1])
        for batch in features.split(50):
            yield memory.copy_(batch)

    assert torch.equal(gathered(reused(), None, 0).vectors, features)
    assert torch.equal(gathered(list(features.split(64)), None, 0).vectors, features)
    assert gathered(features.tolist(), None, 0).vectors.shape == features.shape


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_features_of_every_kind_fit_by_default(name: str) -> None:
    """Ten thousand vectors, the default settings; two-sample tests against fresh ones, whose mean varies by 0.003."""
    from flowprior.stats.two_sample import classifier_two_sample

    prior = FlowPrior.fit(draw(name, 10_000))
    found = []
    for seed in range(4):
        fresh = prior.project(draw(name, 5000, seed=1 + seed)).numpy()
        samples = prior.sample(5000, torch.Generator().manual_seed(seed)).numpy()
        found.append(classifier_two_sample(samples, fresh, seed))
    print(name, found, prior.fitted)
    assert sum(found) / len(found) <= 0.53
    assert isinstance(prior.fitted, FitReport)
    assert prior.fitted.verdict == "good"
