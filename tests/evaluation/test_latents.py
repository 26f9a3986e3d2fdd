"""Latents against targets: what a fresh sample gives, and that what differs is told aloud."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flowprior.core import rng
from flowprior.core.shard_writer import ShardWriter, to_float16
from flowprior.core.shards import ShardReader
from flowprior.evaluation import latents as module
from flowprior.evaluation.latents import (
    AMBIGUOUS,
    NEIGHBOURS,
    check_held_out,
    match_metrics,
    probe_accuracy,
)
from flowprior.flow.velocity import VelocityMLP
from flowprior.prior.flow_prior import FlowPrior
from flowprior.prior.projection import Projection

DIM, TOKENS = 3, 4


def normal(*shape: int, tag: str) -> torch.Tensor:
    """Fixed standard normal numbers."""
    return torch.randn(*shape, generator=rng.generator(0, tag))


def targets(folder: Path, held_out: int = 300) -> ShardReader:
    """Standard normal targets."""
    folder.mkdir()
    writer = ShardWriter(folder)
    writer.write("train", {"vectors": normal(600, DIM, tag="train").numpy()})
    writer.write("validation", {"vectors": normal(held_out, DIM, tag="held out").numpy()})
    writer.close(kind="targets", provenance={})
    return ShardReader.open(folder, "targets", "the test")


def latents(folder: Path, scale: float = 1.0, separation: float = 0.0) -> ShardReader:
    """Normal latents of two classes, with a mirror image that is something else; float16, as they are stored."""
    folder.mkdir()
    writer = ShardWriter(folder)
    for split, images in (("train", 200), ("validation", 80)):
        labels = torch.arange(images) % 2
        found = scale * normal(images, 2, TOKENS, DIM, tag=split)
        found[:, 0] += separation * labels.view(-1, 1, 1)
        found[:, 1] = 50.0
        writer.write(split, {"latents": to_float16(found), "labels": labels.numpy()})
    writer.close(kind="latents", provenance={}, num_classes=2, mean=[0.0] * DIM, std=1.0)
    return ShardReader.open(folder, "latents", "the test")


@pytest.fixture(scope="module")
def prior() -> FlowPrior:
    """A flow that leaves noise as it is: v = 0 carries N(0, I) to itself."""
    velocity = VelocityMLP(DIM, 8, 1)
    torch.nn.init.zeros_(velocity.output.weight)
    torch.nn.init.zeros_(velocity.output.bias)
    return FlowPrior(velocity, Projection(torch.eye(DIM), 1.0, "identity", seed=0))


def test_a_fresh_sample_of_the_targets_matches_them(
    tmp_path: Path, prior: FlowPrior, capsys: pytest.CaptureFixture[str]
) -> None:
    """Covered and not told apart, as dense as the held-out targets; mirror images are not looked at."""
    found = match_metrics(latents(tmp_path / "l"), targets(tmp_path / "t"), prior, 0)
    assert found["verdict"] == "good"
    assert capsys.readouterr().err == ""
    assert found["coverage"] > 0.8 * found["coverage_control"]
    assert found["c2st_accuracy"] < 0.6
    # Of N(0, I) in three dims: (3 / 2) (1 + log 2 pi) nats, within the error of so many vectors.
    assert found["nll_nats"] == pytest.approx(1.5 * (1 + np.log(2 * np.pi)), abs=0.15)
    assert found["nll_gap_nats"] == found["nll_nats"] - found["nll_targets_nats"]
    assert (found["num_latents"], found["num_targets"]) == (80 * TOKENS, 300)


@pytest.mark.parametrize(("scale", "word"), [(0.05, "narrow"), (3.0, "wide")])
def test_a_verdict_that_is_not_good_is_told_aloud(
    tmp_path: Path,
    prior: FlowPrior,
    capsys: pytest.CaptureFixture[str],
    scale: float,
    word: str,
) -> None:
    """By the word of `FlowPrior.check`, which merely narrow latents do not share with collapsed ones."""
    found = match_metrics(latents(tmp_path / "l", scale), targets(tmp_path / "t"), prior, 0)
    assert found["verdict"] == word
    said = capsys.readouterr().err.splitlines()
    assert said
    assert all(
        line.startswith(f"encode_latents: WARNING the latents are {word}: ") for line in said
    )


def test_few_latents_have_no_verdict(
    tmp_path: Path, prior: FlowPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prior, "targets", normal(60, DIM, tag="kept"))
    found = match_metrics(latents(tmp_path / "l"), targets(tmp_path / "t"), prior, 0)
    assert found["verdict"] is None


def test_figures_that_samples_have_too_say_that_they_are_of_latents(
    tmp_path: Path, prior: FlowPrior
) -> None:
    """Precision and recall of samples against images are other figures of the same names."""
    found = match_metrics(latents(tmp_path / "l"), targets(tmp_path / "t"), prior, 0)
    for name in AMBIGUOUS:
        assert f"latent_{name}" in found
        assert name not in found


def test_the_match_depends_on_the_seed_alone(tmp_path: Path, prior: FlowPrior) -> None:
    both = latents(tmp_path / "l"), targets(tmp_path / "t")
    first = match_metrics(*both, prior, 0)
    torch.rand(3)
    assert match_metrics(*both, prior, 0) == first
    assert match_metrics(*both, prior, 1) != first


def test_no_more_vectors_are_looked_at_than_the_bounds(
    tmp_path: Path, prior: FlowPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole images of latents: 50 vectors are 13 images of four."""
    monkeypatch.setattr(module, "MATCH_VECTORS", 50)
    found = match_metrics(latents(tmp_path / "l"), targets(tmp_path / "t"), prior, 0)
    assert (found["num_latents"], found["num_targets"]) == (50, 50)


@pytest.mark.parametrize("held_out", [1, NEIGHBOURS])
def test_too_few_held_out_targets_are_told_with_what_to_do(tmp_path: Path, held_out: int) -> None:
    reader = targets(tmp_path / "t", held_out)
    with pytest.raises(ValueError, match=rf"holds out {held_out} vectors.*dvc repro extract_fea"):
        check_held_out(reader)
    check_held_out(targets(tmp_path / "enough", NEIGHBOURS + 1))


def test_a_linear_probe_reads_classes_from_the_unmirrored_latents(tmp_path: Path) -> None:
    assert probe_accuracy(latents(tmp_path / "apart", separation=5.0)) == 1.0
    assert probe_accuracy(latents(tmp_path / "mixed")) == pytest.approx(0.5, abs=0.2)


def test_a_probe_of_many_images_looks_at_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = latents(tmp_path / "l", separation=5.0)
    monkeypatch.setattr(module, "PROBE_IMAGES", 12)
    seen: list[int] = []
    plain = module.linear_probe_accuracy
    monkeypatch.setattr(
        module,
        "linear_probe_accuracy",
        lambda *data: (seen.extend(map(len, data)), plain(*data))[1],
    )
    assert probe_accuracy(made) == 1.0
    assert seen == [12] * 4
