"""Every name builds its objective, and ranks do not matter."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowprior import FlowPrior
from flowprior.alignment.flows import FlowAlignment as Alignment
from flowprior.alignment.names import OBJECTIVES
from flowprior.alignment.objective import GaussianKL, Objective, Unaligned
from flowprior.alignment.term import alignment_term
from flowprior.core import rng
from flowprior.core.codes import Codes
from flowprior.core.rng import Draw

from .latents import (
    DIM,
    IMAGES,
    TOKENS,
    draw,
    exact_prior,
    learned_prior,
    normal,
    part,
    plain,
    posterior,
    targets,
)


def built(name: str, prior: FlowPrior) -> Any:
    """The objective inside the term of that name, which draws what `exact_prior` knows."""
    return alignment_term(prior, name, targets=targets, num_draws=2).objective


@pytest.mark.parametrize(
    ("name", "kind"), [("none", Unaligned), ("flow_prior", Alignment), ("kl", GaussianKL)]
)
def test_a_name_builds_its_objective(name: str, kind: type) -> None:
    assert type(built(name, exact_prior())) is kind


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_a_number_with_a_gradient_to_the_latents_alone(name: str) -> None:
    """Whatever it asks, all are called alike; `none` alone pulls nothing."""
    prior = learned_prior()
    objective = built(name, prior)
    assert isinstance(objective, Objective)
    if name == "dmd":
        objective.fake = learned_prior(seed=1).velocity  # else both flows agree and nothing pulls
    latents = normal(IMAGES, TOKENS, DIM).requires_grad_()
    loss = objective(plain(latents), draw())
    assert loss.shape == ()
    assert loss.isfinite()
    assert loss.requires_grad == (name != "none")
    if loss.requires_grad:
        loss.backward()
        assert latents.grad.abs().max() > 0
    assert not any(p.requires_grad or p.grad is not None for p in prior.velocity.parameters())


def test_an_unknown_objective_is_told_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"found 'sliced_w1', allowed: .*did you mean 'sliced_w2'"):
        alignment_term(exact_prior(), "sliced_w1")


OWN = """
class Radius:
    def __init__(self, dim, radius):
        self.dim, self.radius = dim, radius

    @classmethod
    def build(cls, material, *, radius=1.0):
        return cls(material.dim, radius)

    def __call__(self, codes, draw):
        return (codes.latents.norm(dim=-1) - self.radius).square().mean() / self.dim
"""


def test_an_objective_of_ones_own_gets_the_material_and_its_options(
    write_plugin: Callable[..., Path],
) -> None:
    """Without an edit of the package."""
    write_plugin("alignment", OWN)
    name = "plugins.alignment.own:Radius"
    objective = alignment_term(exact_prior(), name, options={"radius": 3.0}).objective
    assert isinstance(objective, Objective)
    on_the_sphere = torch.tensor([3.0, 0, 0]).expand(IMAGES, TOKENS, DIM)
    assert objective(plain(on_the_sphere), draw()).item() == 0
    assert objective(plain(torch.zeros(IMAGES, TOKENS, DIM)), draw()).item() == pytest.approx(3)
    assert alignment_term(exact_prior(), name).objective.radius == 1.0
    with pytest.raises(TypeError, match="raduis"):
        alignment_term(exact_prior(), name, options={"raduis": 3.0})


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(
    ("name", "bottleneck"),
    [
        ("none", "plain"),
        ("flow_prior", "plain"),
        ("flow_prior", "kl"),
        ("kl", "kl"),
    ],
)
def test_a_result_does_not_depend_on_how_the_batch_is_shared(
    name: str, bottleneck: str, ranks: int
) -> None:
    """Loss and gradient are the averages over the ranks, each with its share of latents and draws.

    The KL of a plain bottleneck is left out: it gathers the batch, which takes more than one process.
    """
    objective = built(name, learned_prior())

    def codes(rank: int, of: int) -> tuple[Codes, Tensor]:
        cut: Any = partial(part, dim=0, rank=rank, ranks=of)
        latents = cut(3 * normal(IMAGES, TOKENS, DIM) + 1).requires_grad_()
        if bottleneck == "plain":
            return plain(latents), latents
        log_variance = cut(normal(IMAGES, TOKENS, DIM, tag="log_variance")).requires_grad_()
        return posterior(latents, latents, log_variance), latents

    def run(rank: int, of: int) -> tuple[float, Tensor]:
        found, latents = codes(rank, of)
        share: Any = partial(part, rank=rank, ranks=of)
        loss = objective(found, Draw(rng.generator(0, "draw"), IMAGES, share))
        if not loss.requires_grad:
            return loss.item(), torch.zeros_like(latents)
        (gradient,) = torch.autograd.grad(loss, latents)
        return loss.item(), gradient

    loss, gradient = run(0, 1)
    shares = [run(rank, ranks) for rank in range(ranks)]
    # Sums of float32 in another order.
    assert sum(value for value, _ in shares) / ranks == pytest.approx(loss, rel=1e-5, abs=1e-7)
    together = torch.cat([value for _, value in shares]) / ranks
    torch.testing.assert_close(together, gradient, rtol=1e-4, atol=1e-6)
