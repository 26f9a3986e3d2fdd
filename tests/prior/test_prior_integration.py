"""The prior inside other people's training: compiled, distributed, under autocast."""

import shutil

import pytest
import torch
from torch import nn

from flowprior import FlowPrior

FEATURES = torch.randn(256, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def prior() -> FlowPrior:
    return FlowPrior.fit(FEATURES, dim=4, steps=10, width=16, depth=1, batch_vectors=64)


class Regularised(nn.Module):
    """An encoder that returns its alignment loss, the prior a submodule of it."""

    def __init__(self, prior: FlowPrior) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 4)
        self.prior = prior

    def forward(self, x: torch.Tensor, seed: int) -> torch.Tensor:
        return self.prior.alignment_loss(self.encoder(x), torch.Generator().manual_seed(seed))


def test_under_ddp_the_gradient_is_that_of_the_plain_module(prior: FlowPrior, tmp_path) -> None:
    model = Regularised(prior)
    model(FEATURES, 0).backward()
    plain = model.encoder.weight.grad.clone()
    model.zero_grad()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        nn.parallel.DistributedDataParallel(model)(FEATURES, 0).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert torch.allclose(model.encoder.weight.grad, plain)
    assert all(parameter.grad is None for parameter in prior.velocity.parameters())


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs"
)
@pytest.mark.slow
def test_the_compiled_velocity_is_the_same_field(prior: FlowPrior) -> None:
    velocity = torch.compile(prior.velocity)
    x, t = torch.randn(8, 4, 4), torch.rand(8, 1)
    assert torch.allclose(velocity(x, t), prior.velocity(x, t), atol=1e-5)


def test_an_optimiser_over_everything_leaves_the_prior_alone(prior: FlowPrior) -> None:
    model = Regularised(prior)
    before = {name: tensor.clone() for name, tensor in prior.velocity.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model(FEATURES, 0).backward()
    optimizer.step()
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in prior.velocity.state_dict().items()
    )


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_same_prior(prior: FlowPrior) -> None:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(32, 4)
    here = prior.alignment_loss(latents, generator)
    there = prior.to("cuda").alignment_loss(latents.cuda(), generator.manual_seed(1))
    prior.to("cpu")
    assert there.item() == pytest.approx(here.item(), rel=1e-3)
