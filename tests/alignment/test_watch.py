"""The watched alignment: the same images, noise and times at every look, and what is made of the looks."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowprior.alignment import watch as module
from flowprior.alignment.watch import DRAWS, NEIGHBOURS, AlignmentWatch, caption, training_metrics
from flowprior.core import rng
from flowprior.core.codes import Codes
from flowprior.core.shard_writer import ShardWriter
from flowprior.core.shards import ShardReader
from flowprior.images.digits import Digits

from .latents import DIM, learned_prior, targets

HELD_OUT = Digits("validation", 0)
CPU = torch.device("cpu")


class Flat(nn.Module):
    """An autoencoder of two latent tokens, whose latents are not its posterior's means."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with rng.scoped(seed, "flat"):
            self.linear = nn.Linear(64, 2 * DIM)
        self.dropout = nn.Dropout(0.5)

    def encode(self, images: Tensor) -> Codes:
        mean = self.dropout(self.linear(images.flatten(1))).view(-1, 2, DIM)
        return Codes(mean + torch.nan, mean, None)


def shards(folder: Path, rows: int = 50) -> ShardReader:
    """Training targets on disk."""
    folder.mkdir()
    writer = ShardWriter(folder)
    writer.write("train", {"vectors": targets(rows, rng.generator(0, "targets")).numpy()})
    writer.close(kind="targets", provenance={})
    return ShardReader.open(folder, "targets", "the test")


@pytest.fixture
def watch(tmp_path: Path) -> AlignmentWatch:
    """A watch of twenty images."""
    return AlignmentWatch(learned_prior(), shards(tmp_path / "targets"), HELD_OUT, 20, 0)


def test_a_look_is_the_loss_of_the_priors_and_the_proxy_by_brute_force(
    watch: AlignmentWatch, tmp_path: Path
) -> None:
    """Of the posterior means, without dropout; eight draws of noise and time for each latent."""
    autoencoder = Flat()
    row = watch(autoencoder, CPU)
    assert not autoencoder.training
    with torch.no_grad():
        latents = autoencoder.encode(HELD_OUT.images(watch.rows)).mean.flatten(0, 1)
    draw = rng.generator(0, "train_ae", "watch")
    assert row["alignment_loss"] == float(learned_prior().alignment_loss(latents, draw, DRAWS))
    vectors = targets(50, rng.generator(0, "targets"))
    distances = torch.cdist(latents.double(), vectors.double()).sort(-1).values
    for k in NEIGHBOURS:
        expected = float(distances[:, k - 1].log().mean())
        assert row[f"mean_log_r{k}"] == pytest.approx(expected, abs=1e-5)
    assert set(row) == {"alignment_loss", *(f"mean_log_r{k}" for k in NEIGHBOURS)}


def test_every_look_has_the_same_images_noise_and_times(watch: AlignmentWatch) -> None:
    """So that the curve shows the autoencoder alone."""
    first = watch(Flat(), CPU)
    torch.rand(3)
    assert watch(Flat(), CPU) == first
    assert watch(Flat(1), CPU) != first


def test_the_images_are_drawn_from_the_seed_and_ascend(tmp_path: Path) -> None:
    reader = shards(tmp_path / "targets")
    rows = {
        seed: AlignmentWatch(learned_prior(), reader, HELD_OUT, 20, seed).rows for seed in (0, 1)
    }
    assert len(rows[0]) == len(rows[0].unique()) == 20
    assert torch.equal(rows[0], rows[0].sort().values)
    assert not torch.equal(rows[0], rows[1])


@pytest.mark.parametrize(("asked", "taken"), [(0, 1), (1, 1), (10**6, len(HELD_OUT))])
def test_at_least_one_image_is_looked_at_and_at_most_all(
    tmp_path: Path, asked: int, taken: int
) -> None:
    found = AlignmentWatch(learned_prior(), shards(tmp_path / "targets"), HELD_OUT, asked, 0)
    assert len(found.rows) == taken


def test_how_many_images_are_encoded_at_once_does_not_matter(
    watch: AlignmentWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = watch(Flat(), CPU)
    monkeypatch.setattr(module, "BATCH", 7)
    assert watch(Flat(), CPU) == pytest.approx(whole, rel=1e-5)


def test_no_gradient_is_kept(watch: AlignmentWatch) -> None:
    autoencoder = Flat()
    watch(autoencoder, CPU)
    assert all(p.grad is None for p in autoencoder.parameters())


def test_fewer_targets_than_neighbours_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 9 training vectors, log r_k needs 10; .*dvc repro"):
        AlignmentWatch(learned_prior(), shards(tmp_path / "targets", 9), HELD_OUT, 5, 0)


# --- what is made of the looks ------------------------------------------------------------------------


def curves(num_looks: int) -> dict[str, Any]:
    """A training curve, and looks at which the loss follows the proxy of the fifth neighbour alone."""
    draw = np.random.default_rng(0)
    looks = []
    for step in range(num_looks):
        noise = draw.normal(size=2)
        looks.append(
            {
                "step": step,
                "alignment_loss": math.exp(step),
                "mean_log_r1": float(noise[0]),
                "mean_log_r5": float(step),
                "mean_log_r10": float(noise[1]),
            }
        )
    row = {"step": 9, "loss": 3.0, "reconstruction": 2.0, "alignment": 1.0, "grad_norm": 7.0}
    return {"train": [row | {"loss": 9.0}, row]} | ({"alignment": looks} if looks else {})


def test_the_last_losses_and_the_last_look_are_metrics() -> None:
    found = training_metrics(curves(12), 0)
    assert (found["loss"], found["reconstruction"], found["alignment"]) == (3.0, 2.0, 1.0)
    assert found["num_looks"] == 12
    assert found["held_out_alignment_loss"] == math.exp(11)
    assert found["mean_log_r5"] == 11.0


def test_how_the_loss_follows_the_proxy_is_a_metric_with_its_interval() -> None:
    """The ranks agree exactly, the values do not lie on a line."""
    found = training_metrics(curves(12), 0)
    assert found["spearman_r5"] == pytest.approx(1)
    assert 0 < found["pearson_r5"] < 0.99
    for k in NEIGHBOURS:
        assert (
            found[f"spearman_r{k}_low"] <= found[f"spearman_r{k}"] <= found[f"spearman_r{k}_high"]
        )
    assert training_metrics(curves(12), 0) == found


@pytest.mark.parametrize("num_looks", [0, 1, 3])
def test_too_few_looks_correlate_with_nothing_and_are_null(num_looks: int) -> None:
    """Also none, where training is shorter than the cadence of the looks."""
    found = training_metrics(curves(num_looks), 0)
    assert found["num_looks"] == num_looks
    assert found["spearman_r5"] is found["spearman_r5_low"] is found["pearson_r1_high"] is None
    assert (found["held_out_alignment_loss"] is None) == (num_looks == 0)
    assert found.keys() == training_metrics(curves(12), 0).keys()
    assert caption(found) == ""


def test_the_caption_is_the_rank_correlation_in_words() -> None:
    found = training_metrics(curves(12), 0) | {
        "spearman_r5": 0.91234,
        "spearman_r5_low": 0.8,
        "spearman_r5_high": 0.95,
    }
    assert caption(found) == "Spearman 0.912, 95% CI [0.800, 0.950]"
