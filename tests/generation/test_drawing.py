"""Samples in batches: each batch from its own draws, by the settings, equal noise at every scale."""

from typing import Any

import pytest
import torch
from torch import Tensor

from flowprior.config.presets import resolve
from flowprior.core import rng
from flowprior.core.device import start_accelerator
from flowprior.generation.config import SampleEval
from flowprior.generation.drawing import draw_samples
from flowprior.generation.sampler import Sampler

from ..config.committed import ROOT, tree

CFG = resolve(
    ROOT, tree("smoke", sample_eval__batch_images=4, sample_eval__final_head_steps=2)
).params


class Stub(Sampler):
    """A sampler that remembers what it was asked, and draws noise."""

    def __init__(self) -> None:
        self.asked: list[tuple[Tensor, dict[str, Any]]] = []

    def __call__(self, labels: Tensor, generator: torch.Generator, **options: Any) -> Tensor:
        self.asked.append((labels, options))
        noise = torch.rand(len(labels), 1, 2, 2, generator=generator)
        return (noise * 255).to(torch.uint8)


def drawn(
    sampler: Stub, scale: float = 2.0, seed: int = 0, settings: SampleEval = CFG.sample_eval
) -> list[Tensor]:
    """Batches of ten samples."""
    labels = torch.arange(10) % 3
    return list(
        draw_samples(start_accelerator(), sampler, labels, settings, CFG.guidance, seed, scale)
    )


def test_every_label_is_drawn_once_in_order_in_batches() -> None:
    sampler = Stub()
    pieces = drawn(sampler)
    assert [len(piece) for piece in pieces] == [4, 4, 2]
    assert torch.equal(torch.cat([labels for labels, _ in sampler.asked]), torch.arange(10) % 3)


def test_a_batch_has_draws_of_its_own_of_the_seed_and_equal_ones_at_every_scale() -> None:
    first = drawn(Stub())
    assert all(torch.equal(a, b) for a, b in zip(first, drawn(Stub(), scale=1.0), strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(drawn(Stub(), seed=1)[0], first[0])
    second = torch.rand(4, 1, 2, 2, generator=rng.generator(0, "sample_eval", 1))
    assert torch.equal(first[1], (second * 255).to(torch.uint8))


def test_nothing_is_drawn_before_it_is_asked_for() -> None:
    """Batches go to disk as they come."""
    sampler = Stub()
    pieces = draw_samples(
        start_accelerator(), sampler, torch.zeros(10).long(), CFG.sample_eval, CFG.guidance, 0, 1.0
    )
    assert sampler.asked == []
    next(pieces)
    assert len(sampler.asked) == 1


def test_the_sampler_is_asked_by_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Stub()
    drawn(sampler, scale=3.0)
    (_, options), *_ = sampler.asked
    settings, guidance = CFG.sample_eval, CFG.guidance
    assert options == {
        "num_iterations": settings.num_iterations,
        "head_steps": settings.head_steps,
        "final_head_steps": 2,
        "solver": settings.solver,
        "churn": settings.churn,
        "temperature": settings.temperature,
        "guidance_scale": 3.0,
        "guidance_schedule": guidance.schedule,
        "guidance_interval": (guidance.low, guidance.high),
    }
