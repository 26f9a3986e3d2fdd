"""Objectives as terms of other people's training: layouts, copies, resuming, ranks, precision."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from flowprior import FlowPrior
from flowprior.alignment.names import OBJECTIVES
from flowprior.core import rng
from flowprior.core.codes import Codes
from flowprior.core.rng import Draw

from .latents import DIM, learned_prior, normal, targets

NAMES = list(OBJECTIVES)


def term(name: str, prior: FlowPrior | None = None, **settings: Any) -> Any:
    """A term, on a prior that answers something; dmd's own flow differs from it from the start."""
    pull = (prior or learned_prior()).objective(name, targets=targets, **settings)
    if name == "dmd":
        with torch.no_grad():
            pull.objective.fake.output.bias.add_(1.0)
    return pull


def gradient(pull: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient."""
    latents = latents.clone().requires_grad_()
    value = pull(latents)
    if not value.requires_grad:
        return value, torch.zeros_like(latents)
    return value.detach(), torch.autograd.grad(value, latents)[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_layout_of_the_latents_does_not_matter(name: str) -> None:
    """Images of vectors, channels first or last, are the same tokens."""
    images = normal(6, 2, 4, DIM)
    value, slope = gradient(term(name), images.flatten(1, 2))
    for other, channel_dim, back in (
        (images, None, lambda g: g),
        (images.movedim(-1, 1), 1, lambda g: g.movedim(1, -1)),
        (images.flatten(1, 2).movedim(-1, 1).contiguous(), 1, lambda g: g.movedim(1, -1)),
    ):
        found, its_slope = gradient(term(name, channel_dim=channel_dim), other)
        torch.testing.assert_close(found, value)
        torch.testing.assert_close(back(its_slope).reshape(slope.shape), slope)


@pytest.mark.parametrize("name", NAMES)
def test_vectors_alone_are_an_image_each(name: str) -> None:
    vectors = normal(12, DIM)
    value, slope = gradient(term(name), vectors)
    found, its_slope = gradient(term(name), vectors.view(12, 1, DIM))
    assert torch.equal(found, value)
    assert torch.equal(its_slope.view_as(slope), slope)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_objective_of_the_pipeline_times_its_weight(name: str) -> None:
    """Handed the same codes and randomness."""
    pull = term(name, weight=0.25)
    latents = normal(6, 5, DIM)
    codes = Codes(latents, latents, None)
    expected = pull.objective(codes, Draw(rng.generator(3), 6))
    assert torch.equal(pull(codes, draw=Draw(rng.generator(3), 6)), 0.25 * expected)


def loop(pull: Any, steps: range, latents: Tensor, optimizer: torch.optim.Optimizer) -> None:
    for _ in steps:
        optimizer.zero_grad()
        (pull(latents) + latents.square().mean()).backward()
        optimizer.step()
        pull.follow(latents)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_resumed_ends_as_what_was_not(name: str) -> None:
    """From a state dict of nothing but tensors, as safetensors keeps it."""

    def start() -> tuple[Any, Tensor, torch.optim.Optimizer]:
        latents = normal(8, 5, DIM).requires_grad_()
        return term(name), latents, torch.optim.SGD([latents], 0.1)

    pull, whole, optimizer = start()
    loop(pull, range(6), whole, optimizer)
    first, half, optimizer = start()
    loop(first, range(3), half, optimizer)
    kept = load(save({key: value.contiguous() for key, value in first.state_dict().items()}))
    second = term(name)
    second.load_state_dict(kept)
    again = half.detach().clone().requires_grad_()
    loop(second, range(3), again, torch.optim.SGD([again], 0.1))
    assert torch.equal(again, whole)
    assert second.state_dict().keys() == pull.state_dict().keys()
    for key, value in pull.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key


def test_its_state_is_its_own_and_holds_nothing_of_the_prior() -> None:
    pull = term("flow_prior")
    assert list(pull.state_dict()) == ["calls"]
    state = term("dmd").state_dict()
    assert "flow.output.weight" in state
    assert not [key for key in state if "prior" in key]
    with pytest.raises(RuntimeError, match=r"Missing key.*calls"):
        pull.load_state_dict({})
    assert pull.load_state_dict({}, strict=False).missing_keys == ["calls"]
    with pytest.raises(RuntimeError, match="has a flow of the latents, so it is of another") as no:
        pull.load_state_dict(state)
    assert len(str(no.value)) < 300
    with pytest.raises(RuntimeError, match="has no flow of the latents, so it is of another"):
        term("dmd").load_state_dict(pull.state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        pull.load_state_dict({**pull.state_dict(), "other": torch.zeros(1)})


@pytest.mark.parametrize("name", ["flow_prior", "sliced_w2", "dmd"])
def test_a_look_without_gradient_is_the_same_each_time_and_changes_nothing(name: str) -> None:
    """As for held-out latents between two epochs."""
    one, two = term(name), term(name)
    latents, held_out = normal(16, DIM), normal(9, DIM) + 1
    with torch.no_grad():
        looks = [float(one(held_out)) for _ in range(2)]
    with torch.inference_mode():
        looks.append(float(one(held_out)))
    assert looks[0] == looks[1] == looks[2]
    for pull in (one, two):
        pull(latents.requires_grad_(True))
        pull.follow(latents)
    latents = latents.detach()
    first, again = float(one(latents)), float(one(latents))
    assert first == float(two(latents))
    assert first != again


@pytest.mark.parametrize("name", ["flow_prior", "dmd"])
def test_as_a_submodule_it_is_left_alone(name: str) -> None:
    """By an optimiser over everything, by initialisation, by half; a copy goes on by itself."""
    with rng.scoped(0):
        model = nn.ModuleDict({"encoder": nn.Linear(5, DIM), "pull": term(name)})
    assert [key for key, _ in model.named_parameters()] == ["encoder.weight", "encoder.bias"]
    before = {key: value.clone() for key, value in model["pull"].state_dict().items()}
    model.requires_grad_(True).train().half().float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    twin = copy.deepcopy(model["pull"])
    model["pull"](model["encoder"](normal(7, 5))).backward()
    optimizer.step()
    after = model["pull"].state_dict()
    assert int(after.pop("calls")) == 1
    assert int(before.pop("calls")) == 0
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    model["pull"].follow(normal(7, DIM))
    assert int(twin.state_dict()["calls"]) == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_is_float32_whatever_the_latents_are(name: str, dtype: torch.dtype) -> None:
    """Under autocast, too; the gradient has the latents' precision."""
    latents = normal(6, 5, DIM).to(dtype).requires_grad_()
    pull = term(name)
    with torch.autocast("cpu", torch.bfloat16):
        value = pull(latents)
        followed = pull.follow(latents)
    assert value.isfinite()
    assert all(loss.isfinite() for loss in followed.values())
    if name != "none":
        assert value.dtype == torch.float32
        value.backward()
        assert latents.grad is not None
        assert latents.grad.dtype == dtype
        assert latents.grad.isfinite().all()


def test_kl_reads_a_posterior() -> None:
    mean, log_variance = normal(6, DIM, 2, 2), normal(6, DIM, 2, 2, tag="log_variance")
    found = term("kl", channel_dim=1)(mean, mean=mean, log_variance=log_variance)
    exact = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    torch.testing.assert_close(found, exact)
    with pytest.raises(ValueError, match=r"log_variance is .*one for each is needed"):
        term("kl")(normal(6, DIM), log_variance=normal(5, DIM))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1.0}, "weight must be a number from 0 up"),
        ({"weight": float("nan")}, "weight must be a number from 0 up"),
        ({"num_draws": 0}, "num_draws must be at least 1, found 0"),
        ({"fake_updates": 0}, "fake_updates must be at least 1, found 0"),
        ({"fake_lr": 0.0}, "fake_lr must be above 0"),
        ({"targets": torch.zeros(4, DIM + 1)}, r"targets must be \[n, 3\]"),
    ],
)
def test_settings_out_of_range_are_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learned_prior().objective("dmd", **settings)


def test_an_unknown_objective_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'dmd'"):
        learned_prior().objective("dmdd")


def test_targets_are_those_given_those_kept_or_the_flows() -> None:
    """In this order."""
    prior = learned_prior()
    given = torch.full((9, DIM), 7.0)
    near = torch.full((64, DIM), 7.0)
    assert prior.objective("sliced_w2", targets=given)(near).item() == pytest.approx(0, abs=1e-9)
    assert prior.objective("sliced_w2")(near).item() > 1  # the flow's samples
    prior.targets = given
    assert prior.objective("sliced_w2")(near).item() == pytest.approx(0, abs=1e-9)


def on_ranks(rank: int, ranks: int, folder: str) -> None:
    """What one rank of several does: its share of the images, its gradient averaged, two steps."""
    if ranks > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store{ranks}", rank=rank, world_size=ranks
        )
    torch.set_num_threads(1)
    found = {}
    for name in NAMES:
        pull = term(name)
        with rng.scoped(0):
            encoder = nn.Linear(DIM, DIM)
        model: Any = nn.parallel.DistributedDataParallel(encoder) if ranks > 1 else encoder
        optimizer = torch.optim.SGD(encoder.parameters(), 0.1)
        images = normal(8, 4, DIM).chunk(ranks)[rank]
        for _ in range(2):
            optimizer.zero_grad()
            latents = model(images)
            (pull(latents) + 0 * latents.sum()).backward()
            optimizer.step()
            pull.follow(latents)
        found |= {f"{name}.{key}": value for key, value in encoder.state_dict().items()}
        found |= {f"{name}.{key}": value for key, value in pull.state_dict().items()}
    if rank == 0:
        torch.save(found, f"{folder}/{ranks}.pt")
    if ranks > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_several_ranks_are_one(tmp_path: Path) -> None:
    """Under DDP, each rank with its share of the images: every objective is that of the global batch."""
    on_ranks(0, 1, str(tmp_path))
    torch.multiprocessing.spawn(on_ranks, (2, str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f"{ranks}.pt", weights_only=True) for ranks in (1, 2))
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5, msg=key)


def unequal(rank: int, folder: str) -> None:
    """Ranks with batches of different sizes are told so, each of them."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/unequal", rank=rank, world_size=2
    )
    pull = learned_prior().objective("mmd")
    with pytest.raises(ValueError, match=r"ranks have \[4, 5\] images"):
        pull(normal(4 + rank, DIM))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_with_unequal_batches_are_an_error_and_no_wait(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(unequal, (str(tmp_path),), nprocs=2)


@pytest.mark.parametrize("name", NAMES)
def test_a_term_can_be_pickled(name: str) -> None:
    """As launchers do that start processes; the copy goes on where the original would."""
    prior = learned_prior()
    prior.targets = normal(50, DIM, tag="kept")
    pull = prior.objective(name)
    latents = normal(8, DIM)
    pull.follow(latents)
    again = pickle.loads(pickle.dumps(pull))
    assert torch.equal(again(latents), pull(latents))


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_it_moves_to_a_gpu_and_goes_on_there(name: str) -> None:
    pull = term(name)
    latents = normal(6, 5, DIM)
    pull.follow(latents)
    pull.to("cuda")
    on_gpu = latents.cuda().requires_grad_()
    value = pull(on_gpu)
    if name != "none":
        value.backward()
        assert on_gpu.grad is not None
    pull.follow(on_gpu)
    assert value.device.type == "cuda"


def test_a_flow_that_never_follows_is_told_once(recwarn: pytest.WarningsRecorder) -> None:
    """Without it dmd pulls nowhere, and looks as if it did."""
    latents = normal(4, 2, DIM).requires_grad_()
    for name, calls in (("dmd", 60), ("flow_prior", 60)):
        pull = term(name)
        for _ in range(calls):
            pull(latents)
    said = [str(one.message) for one in recwarn if "follow" in str(one.message)]
    assert len(said) == 1
    assert "call pull.follow(latents)" in said[0]
    pull = term("dmd")
    pull.follow(latents)
    for _ in range(60):
        pull(latents)
    assert len([one for one in recwarn if "follow" in str(one.message)]) == 1
