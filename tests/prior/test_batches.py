"""Where the stage takes its targets and its noise from."""

import numpy as np
import pytest
import torch

from flowprior.core import rng
from flowprior.core.shards import Column
from flowprior.prior.batches import draw_noise, some_targets, targets_at_hand


@pytest.fixture
def targets() -> Column:
    draw = np.random.default_rng(0)
    return Column([draw.normal(size=(n, 3)).astype(np.float32) for n in (5, 4, 9)])


def test_on_a_cpu_targets_come_from_disk_and_noise_from_the_step_s_generator(
    targets: Column,
) -> None:
    cpu = torch.device("cpu")
    assert targets_at_hand(targets, cpu) == targets.sample
    found = draw_noise(torch.Size([4, 3]), rng.generator(0, "step"), cpu)
    assert torch.equal(found, rng.normal_like(found, rng.generator(0, "step")))


@pytest.mark.gpu
def test_a_gpu_holds_the_same_rows(targets: Column) -> None:
    sample = targets_at_hand(targets, torch.device("cuda"))
    found = sample(100, rng.generator(0, "step"))
    assert found.is_cuda
    assert torch.equal(found.cpu(), targets.sample(100, rng.generator(0, "step")))


@pytest.mark.gpu
def test_targets_that_would_fill_a_gpu_stay_on_disk(
    targets: Column, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (18 * 3 * 4 * 4 - 1, 10**9))
    assert targets_at_hand(targets, torch.device("cuda")) == targets.sample


@pytest.mark.gpu
def test_noise_of_a_gpu_is_fixed_by_the_step(targets: Column) -> None:
    first, again, other = (
        draw_noise(torch.Size([999, 3]), rng.generator(0, step), torch.device("cuda"))
        for step in (0, 0, 1)
    )
    assert first.is_cuda
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert abs(float(first.std()) - 1) < 0.1


def test_the_prior_keeps_all_of_a_few_targets_and_different_ones_of_many(
    targets: Column, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert torch.equal(some_targets(targets, rng.generator(0)), torch.from_numpy(targets.read()))
    monkeypatch.setattr("flowprior.prior.batches.KEPT_TARGETS", 9)
    kept = some_targets(targets, rng.generator(0))
    assert 5 <= len(kept) <= 9
    assert len(kept.unique(dim=0)) == len(kept)
    everyone = targets.read().tolist()
    assert all(row in everyone for row in kept.tolist())
