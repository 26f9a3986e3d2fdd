"""How good a flow is, on targets that it never saw: closed forms for a perfect one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from flowprior.core.shard_writer import ShardWriter
from flowprior.core.shards import ShardReader
from flowprior.flow.velocity import VelocityMLP
from flowprior.prior.flow_prior import FlowPrior
from flowprior.prior.held_out import held_out_metrics
from flowprior.prior.projection import Projection
from flowprior.toy.closed_forms import gaussian_velocity

DIM, STD = 2, 0.5


class Exact(VelocityMLP):
    """The optimal field for N(0, STD^2)."""

    def __init__(self, std: float) -> None:
        super().__init__(DIM, 8, 1)
        self.exact = gaussian_velocity(torch.zeros(DIM), torch.full((DIM,), std))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.exact(x, t)


def prior(std: float = STD) -> FlowPrior:
    """A prior that believes in this spread."""
    return FlowPrior(Exact(std), Projection(torch.eye(DIM), 1.0, "identity", seed=0))


def targets(folder: Path, floor: float | None = None, rows: int = 600) -> ShardReader:
    """Targets of N(0, STD^2)."""
    draw = np.random.default_rng(0)
    writer = ShardWriter(folder)
    for split in ("train", "validation"):
        writer.write(split, {"vectors": (STD * draw.normal(size=(rows, DIM))).astype(np.float32)})
    writer.close(kind="targets", provenance={}, irreducible_loss=floor)
    return ShardReader.open(folder, "targets", "the test")


def test_a_perfect_flow_has_the_irreducible_loss_the_exact_likelihood_and_true_samples(
    tmp_path: Path,
) -> None:
    """Loss (pi / 2) s a dim, entropy of the Gaussian in nats a vector, samples that are not told apart."""
    floor = float(np.pi / 2 * STD)
    found = held_out_metrics(prior(), targets(tmp_path, floor), 500, 0)
    assert found["num_held_out"] == 500
    assert found["held_out_loss"] == pytest.approx(floor, rel=0.05)
    assert found["irreducible_gap"] == found["held_out_loss"] - floor
    entropy = DIM * (0.5 * np.log(2 * np.pi * np.e) + np.log(STD))
    # 500 vectors: the mean of the NLL has a standard error of 1 / sqrt(500).
    assert found["held_out_nll_nats"] == pytest.approx(entropy, abs=0.15)
    assert abs(found["c2st_accuracy"] - 0.5) < 0.1


def test_a_flow_of_another_spread_has_a_gap_a_worse_likelihood_and_is_told_apart(
    tmp_path: Path,
) -> None:
    reader = targets(tmp_path, float(np.pi / 2 * STD))
    right, wrong = (held_out_metrics(prior(std), reader, 500, 0) for std in (STD, 3.0))
    assert wrong["irreducible_gap"] > right["irreducible_gap"] + 0.1
    assert wrong["held_out_nll_nats"] > right["held_out_nll_nats"] + 1
    assert wrong["c2st_accuracy"] > 0.6


def test_the_gap_is_null_where_the_irreducible_loss_is_not_known(tmp_path: Path) -> None:
    assert held_out_metrics(prior(), targets(tmp_path), 100, 0)["irreducible_gap"] is None


def test_figures_depend_on_the_seed_alone_and_look_at_no_more_than_there_are(
    tmp_path: Path,
) -> None:
    reader = targets(tmp_path, rows=150)
    first = held_out_metrics(prior(), reader, 10**6, 0)
    assert first["num_held_out"] == 150
    torch.rand(3)
    assert held_out_metrics(prior(), reader, 10**6, 0) == first
    assert held_out_metrics(prior(), reader, 100, 1)["held_out_loss"] != first["held_out_loss"]
