"""`FlowPrior` from features to latents: what it learns, what it refuses, what it leaves alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import flowprior
from flowprior import FlowPrior
from flowprior.core import rng
from flowprior.core.artifacts import MANIFEST, write_manifest
from flowprior.core.io import ArtifactError, read_json
from flowprior.flow.losses import grouped_loss
from flowprior.flow.velocity import VelocityMLP
from flowprior.prior.files import FORMAT_VERSION, KIND
from flowprior.prior.projection import Projection
from flowprior.toy.closed_forms import gaussian_alignment_loss

STD = torch.tensor([0.5, 1.0, 1.5])
MEAN = torch.tensor([1.0, 0.0, -0.5])
TINY: dict[str, Any] = {"steps": 8, "width": 16, "depth": 1, "batch_vectors": 64}


def gaussian(n: int, tag: str = "features") -> Tensor:
    """Draws of N(MEAN, diag(STD^2)), float32."""
    return MEAN + STD * torch.randn(n, 3, generator=rng.generator(0, tag))


def latents_of(*shape: int, tag: str = "latents") -> Tensor:
    """Fixed normal numbers, float32."""
    return torch.randn(*shape, generator=rng.generator(0, tag))


def state_of(prior: FlowPrior) -> dict[str, Tensor]:
    """Every tensor of a prior."""
    found = {
        f"{name}.{key}": value
        for name in ("velocity", "projection")
        for key, value in getattr(prior, name).state_dict().items()
    }
    assert prior.targets is not None
    return found | {"targets": prior.targets}


@pytest.fixture(scope="module")
def prior() -> FlowPrior:
    """A prior that has learned a Gaussian in three dims."""
    return FlowPrior.fit(gaussian(20_000), steps=400, width=64, depth=2, batch_vectors=512)


@pytest.fixture(scope="module")
def rough() -> FlowPrior:
    """A prior that has hardly learned anything, of features with eight channels."""
    return FlowPrior.fit(latents_of(300, 8, tag="features"), dim=3, **TINY)


# --- what it learns ---------------------------------------------------------------------------------


def test_the_nll_of_a_fitted_gaussian_is_that_of_scipy(prior: FlowPrior) -> None:
    """In nats, summed over dims, in the space of the projected features."""
    targets = prior.project(gaussian(400, tag="held out"))
    scale = float(prior.projection.scale)
    exact = stats.norm(scale * MEAN.numpy(), scale * STD.numpy()).logpdf(targets.numpy()).sum(-1)
    found = prior.nll(targets)
    # What 400 steps of a small network leave: a few hundredths of a nat in the mean, more in the tails.
    assert found.mean().item() == pytest.approx(-exact.mean(), abs=0.1)
    assert np.abs(found.numpy() + exact).mean() < 0.2
    assert np.corrcoef(found.numpy(), -exact)[0, 1] > 0.98


def test_samples_of_a_fitted_gaussian_have_its_moments(prior: FlowPrior) -> None:
    """Mean and spread per dim, to what the small network learned."""
    samples = prior.sample(4000, rng.generator(0, "samples"))
    scale = float(prior.projection.scale)
    assert samples.shape == (4000, 3)
    torch.testing.assert_close(samples.mean(0), scale * MEAN, rtol=0, atol=0.1)
    torch.testing.assert_close(samples.std(0), scale * STD, rtol=0.1, atol=0.0)


def test_the_alignment_loss_of_a_fitted_gaussian_is_its_closed_form(prior: FlowPrior) -> None:
    """(pi / 4) mean of (s + (y - mean)^2 / s), over latents near and off the target."""
    latents = latents_of(64, 3)
    scale = float(prior.projection.scale)
    exact = gaussian_alignment_loss(latents, scale * MEAN, scale * STD).mean().item()
    found = prior.alignment_loss(latents, rng.generator(0, "loss"), num_draws=256).item()
    # Monte-Carlo error below 1%; the rest is what the network has not learned.
    assert found == pytest.approx(exact, rel=0.1)


def test_aligning_latents_raises_their_likelihood(prior: FlowPrior) -> None:
    """The claim of the paper, by gradient steps on free latents that start far away."""
    latents = (4 + latents_of(64, 3)).requires_grad_()
    before = prior.nll(latents).mean()
    optimizer = torch.optim.Adam([latents], lr=0.1)
    draws = rng.generator(0, "align")
    for _ in range(60):
        optimizer.zero_grad()
        prior.alignment_loss(latents, draws).backward()
        optimizer.step()
    after = prior.nll(latents).mean()
    assert after < before - 2
    assert (latents.detach() - float(prior.projection.scale) * MEAN).norm(dim=-1).mean() < 2


# --- what it promises to those who train with it ----------------------------------------------------


def test_the_prior_is_frozen_and_latents_learn(rough: FlowPrior) -> None:
    """No parameter of it takes a gradient; every latent gets one."""
    latents = latents_of(4, 6, 3).requires_grad_()
    rough.alignment_loss(latents).backward()
    assert not list(rough.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in rough.velocity.parameters())
    assert latents.grad is not None
    assert latents.grad.isfinite().all()
    assert latents.grad.abs().amin() > 0


def test_a_fitted_prior_holds_no_gradients() -> None:
    """What training needed is gone: no memory is held, and no optimiser could step on it."""
    prior = FlowPrior.fit(latents_of(100, 3), **TINY)
    assert all(p.grad is None for p in prior.velocity.parameters())


def test_the_prior_is_a_plain_submodule(rough: FlowPrior) -> None:
    """Inside a model that learns: the model's own parameters move, the prior's stay bit for bit."""
    with rng.scoped(0):
        model = nn.ModuleDict({"encoder": nn.Linear(5, 3), "prior": rough})
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert list(before) == ["encoder.weight", "encoder.bias"]
    frozen = {name: p.clone() for name, p in rough.velocity.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model.train()
    loss = model["prior"].alignment_loss(model["encoder"](latents_of(7, 5)))
    loss.backward()
    optimizer.step()
    for name, p in model.named_parameters():
        assert not torch.equal(p, before[name]), name
    for name, p in rough.velocity.named_parameters():
        assert torch.equal(p, frozen[name]), name


@pytest.mark.parametrize("shape", [(3,), (1, 3), (5, 3), (2, 5, 3), (2, 1, 4, 3)])
def test_latents_may_have_any_leading_shape(rough: FlowPrior, shape: tuple[int, ...]) -> None:
    """The loss is a number, the nll one value per vector; both are those of the flattened latents."""
    latents = latents_of(*shape)
    flat = latents.view(-1, 3)
    loss = rough.alignment_loss(latents, rng.generator(1))
    assert loss.shape == ()
    assert torch.equal(loss, rough.alignment_loss(flat, rng.generator(1)))
    nll = rough.nll(latents)
    assert nll.shape == shape[:-1]
    assert torch.equal(nll.flatten(), rough.nll(flat))


def test_latents_need_not_be_contiguous(rough: FlowPrior) -> None:
    """Feature maps with the channels moved to the end are views."""
    latents = latents_of(2, 3, 4, 4)
    view = latents.permute(0, 2, 3, 1)
    one = rough.alignment_loss(view, rng.generator(1))
    assert torch.equal(one, rough.alignment_loss(view.contiguous(), rng.generator(1)))
    assert rough.nll(view).shape == (2, 4, 4)


def test_the_alignment_loss_is_the_mean_over_draws_vectors_and_dims(rough: FlowPrior) -> None:
    """That of the function, for latents that are tiled once per draw."""
    latents = latents_of(10, 3)
    tiled = latents.repeat(5, 1)
    expected = grouped_loss(rough.velocity, tiled, rough.time_groups, rng.generator(1)).mean()
    assert torch.equal(rough.alignment_loss(latents, rng.generator(1), num_draws=5), expected)


def test_more_draws_lower_the_variance_and_leave_the_mean(rough: FlowPrior) -> None:
    """Sixteen draws vary at most a quarter as much as one; the means agree to five standard errors."""
    latents = latents_of(4, 3)
    draws = rng.generator(0, "draws")
    one, many = (
        torch.stack([rough.alignment_loss(latents, draws, num_draws=k) for _ in range(300)])
        for k in (1, 16)
    )
    assert many.var() < one.var() / 4
    standard_error = ((one.var() + many.var()) / 300).sqrt().item()
    assert one.mean().item() == pytest.approx(many.mean().item(), abs=5 * standard_error)


def test_draws_come_from_the_generator_or_from_the_global_stream(rough: FlowPrior) -> None:
    """Equal generators give equal losses; with none, `torch.manual_seed` decides."""
    latents = latents_of(10, 3)
    losses = [rough.alignment_loss(latents, rng.generator(seed)) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    with rng.scoped(0):
        first = rough.alignment_loss(latents)
    with rng.scoped(0):
        assert rough.alignment_loss(latents) == first
    samples = [rough.sample(3, rng.generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_alignment_loss_is_finite_float32_under_bf16_autocast(
    rough: FlowPrior, dtype: torch.dtype
) -> None:
    """Whatever the latents' dtype, and its gradient reaches them in theirs."""
    latents = latents_of(10, 3).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = rough.alignment_loss(latents, rng.generator(1))
    loss.backward()
    exact = rough.alignment_loss(latents, rng.generator(1)).item()
    assert loss.dtype == torch.float32
    # bfloat16 has eight significant bits; the velocity is a part of the residual only.
    assert loss.item() == pytest.approx(exact, rel=0.02)
    assert latents.grad is not None
    assert latents.grad.dtype == dtype
    assert latents.grad.isfinite().all()


def test_targets_are_float32_under_autocast(rough: FlowPrior) -> None:
    """The projection is applied in float32, as in the published runs (reference.md, 1.4)."""
    features = latents_of(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rough.project(features), rough.project(features.double()))
        assert rough.project(features).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_latents_of_another_precision_are_taken(rough: FlowPrior, dtype: torch.dtype) -> None:
    """Loss and nll are computed in the prior's own float32."""
    latents = latents_of(5, 3).to(dtype)
    assert rough.alignment_loss(latents, rng.generator(1)).dtype == torch.float32
    torch.testing.assert_close(rough.nll(latents), rough.nll(latents.float()))


def test_nll_does_not_depend_on_chunks_and_has_no_gradient(rough: FlowPrior) -> None:
    """Chunks bound the memory; the adaptive solver may choose other steps for them."""
    latents = latents_of(10, 3).requires_grad_()
    whole = rough.nll(latents)
    assert not whole.requires_grad
    # rtol = atol = 1e-5 of the solver, over some dozens of steps.
    torch.testing.assert_close(rough.nll(latents, chunk=3), whole, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        assert torch.equal(rough.nll(latents), whole)


def test_nll_works_in_inference_mode(rough: FlowPrior) -> None:
    """Where evaluation is usually done."""
    with torch.inference_mode():
        assert rough.nll(latents_of(5, 3)).isfinite().all()


def test_the_nll_of_no_latents_is_empty(rough: FlowPrior) -> None:
    """One value per vector, of which there are none."""
    assert rough.nll(torch.zeros(0, 3)).shape == (0,)
    assert rough.nll(torch.zeros(4, 0, 3)).shape == (4, 0)


def test_latents_with_other_channels_are_an_error_that_says_what_to_do(rough: FlowPrior) -> None:
    """Before anything is computed, for the loss and for the nll."""
    for method in (rough.alignment_loss, rough.nll):
        with pytest.raises(
            ValueError, match="latents have 4 channels, this flow prior models 3; give"
        ):
            method(latents_of(5, 4))
    with pytest.raises(ValueError, match="features have 3 channels, the projection takes 8"):
        rough.project(latents_of(5, 3))


@pytest.mark.parametrize("shape", [(0, 3), (4, 0, 3)])
def test_there_is_no_loss_of_no_latents(rough: FlowPrior, shape: tuple[int, ...]) -> None:
    """The mean of nothing would be NaN and poison a run."""
    with pytest.raises(ValueError, match="no latents to align: a leading axis is empty"):
        rough.alignment_loss(torch.zeros(shape))


@pytest.mark.parametrize("num_draws", [0, -1])
def test_draws_must_be_positive(rough: FlowPrior, num_draws: int) -> None:
    """The message says what was found."""
    with pytest.raises(ValueError, match=f"num_draws must be at least 1, found {num_draws}"):
        rough.alignment_loss(latents_of(5, 3), num_draws=num_draws)


def test_a_projection_and_a_velocity_of_other_dims_are_an_error() -> None:
    """They would meet only in the first loss otherwise."""
    with pytest.raises(ValueError, match="the projection gives 2 channels, the velocity takes 3"):
        FlowPrior(VelocityMLP(3, 8, 1), Projection(torch.zeros(4, 2), 1.0, "random", 0))


# --- fitting ----------------------------------------------------------------------------------------


def test_fitting_is_deterministic_for_a_seed_and_leaves_the_global_stream_alone() -> None:
    """Bit for bit, whatever ran before; another seed gives another prior."""
    features = latents_of(100, 8)
    states = []
    for before, seed in [(1, 0), (2, 0), (2, 5)]:
        torch.manual_seed(before)
        state = torch.random.get_rng_state()
        states.append(state_of(FlowPrior.fit(features, dim=3, seed=seed, **TINY)))
        assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["projection.matrix"], states[2]["projection.matrix"])
    name = "velocity.velocity.input.weight"
    assert not torch.equal(states[0][name], states[2][name])


def test_features_may_be_tensors_or_arrays_of_any_leading_shape() -> None:
    """The same rows give the same prior, and what was passed is not changed."""
    features = latents_of(60, 8).requires_grad_()
    states = [
        state_of(FlowPrior.fit(given, dim=3, **TINY))
        for given in (
            features,
            features.detach().view(3, 4, 5, 8),
            features.detach().numpy(),
            features.detach().double(),
            features.detach().tolist(),
        )
    ]
    for state in states[1:]:
        assert all(torch.equal(state[name], states[0][name]) for name in state)
    assert features.grad is None


@pytest.mark.parametrize("operator", ["random", "avg_pool", "pca"])
def test_the_prior_projects_as_it_was_told(operator: Any) -> None:
    """To the dim and by the operator asked for, with unit spread; without a dim, to the features' own."""
    features = 7 * latents_of(200, 8)
    prior = FlowPrior.fit(features, dim=3, operator=operator, **TINY)
    assert prior.dim == 3
    assert prior.projection.operator == operator
    spread = prior.project(features).var(0, correction=0).mean().item()
    # float32.
    assert spread == pytest.approx(1, rel=1e-5)
    assert FlowPrior.fit(features, operator=operator, **TINY).projection.operator == "identity"


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.full((20, 8), float("nan")), "NaN or infinite"),
        (torch.eye(8) / torch.eye(8), "NaN or infinite"),
        (torch.full((20, 8), 3.7), "do not vary"),
        (torch.randn(1, 8, generator=rng.generator(0)), "do not vary"),
        (torch.zeros(0, 8), r"not empty, found \(0, 8\)"),
        (torch.zeros(8, 0), r"not empty, found \(8, 0\)"),
        (torch.zeros(8), r"must be \[..., D\] and not empty, found \(8,\)"),
    ],
    ids=["nan", "inf", "constant", "one vector", "no rows", "no channels", "no vectors"],
)
def test_features_that_cannot_be_fitted_are_an_error(features: Tensor, message: str) -> None:
    """Before the first step, each with its reason."""
    with pytest.raises(ValueError, match=message):
        FlowPrior.fit(features, dim=3, **TINY)


def test_more_channels_than_the_features_have_are_an_error() -> None:
    """The message names both numbers, and the ways out."""
    with pytest.raises(ValueError, match=r"have 8 channels and dim is 9.*dim=8 and pull"):
        FlowPrior.fit(latents_of(20, 8), dim=9, **TINY)


def test_a_dim_of_zero_is_an_error() -> None:
    """It is not the same as no dim."""
    with pytest.raises(ValueError, match="cannot project 8 channels to 0"):
        FlowPrior.fit(latents_of(20, 8), dim=0, **TINY)


def test_a_fit_that_diverges_is_an_error_that_names_the_step() -> None:
    """Rather than a prior of NaNs."""
    with pytest.raises(ValueError, match=r"diverged at step \d+; lower `lr`"):
        FlowPrior.fit(latents_of(100, 3), lr=1e30, **(TINY | {"steps": 60}))


# --- saving and loading -----------------------------------------------------------------------------


def test_a_saved_prior_gives_identical_samples_and_losses(rough: FlowPrior, tmp_path: Path) -> None:
    """Bit for bit; loaded to the CPU, frozen, with everything that it was made of."""
    rough.save(tmp_path / "prior")
    loaded = FlowPrior.load(tmp_path / "prior")
    latents = latents_of(10, 3)
    assert torch.equal(loaded.sample(20, rng.generator(0)), rough.sample(20, rng.generator(0)))
    assert torch.equal(loaded.nll(latents), rough.nll(latents))
    for one, two in zip(state_of(loaded).items(), state_of(rough).items(), strict=True):
        assert one[0] == two[0]
        assert torch.equal(one[1], two[1])
    assert loaded.alignment_loss(latents, rng.generator(0)) == rough.alignment_loss(
        latents, rng.generator(0)
    )
    assert torch.equal(loaded.project(latents_of(4, 8)), rough.project(latents_of(4, 8)))
    assert loaded.projection.operator == rough.projection.operator
    assert loaded.time_groups == rough.time_groups
    assert not any(p.requires_grad for p in loaded.parameters())


def test_the_convention_of_time_is_saved_with_the_prior(rough: FlowPrior, tmp_path: Path) -> None:
    """The authors' own code has two; whoever reads the file need not guess."""
    rough.save(tmp_path / "prior")
    config = read_json(tmp_path / "prior" / "config.json")
    assert config["time_convention"] == "t = 0 is noise, t = 1 is data"
    assert (config["format"], config["dim"], config["operator"]) == (FORMAT_VERSION, 3, "random")


def test_saving_twice_gives_equal_bytes_and_replaces_what_was_there(
    rough: FlowPrior, tmp_path: Path
) -> None:
    """Facts and provenance go into the manifest; nothing of the old prior remains, and nothing else is lost."""
    for name in ("one", "two"):
        rough.save(tmp_path / name, provenance={"config": "c0ffee"}, gap=0.25)
    (tmp_path / "two" / "notes").touch()
    with pytest.raises(ValueError, match="holds a flow prior and notes, which would be lost"):
        rough.save(tmp_path / "two")
    (tmp_path / "two" / "notes").unlink()
    rough.save(tmp_path / "two", provenance={"config": "c0ffee"}, gap=0.25)
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    ]
    assert files[0] == files[1]
    manifest = read_json(tmp_path / "one" / MANIFEST)
    assert (manifest["kind"], manifest["gap"]) == (KIND, 0.25)
    assert manifest["provenance"] == {"config": "c0ffee"}


def reseal(root: Path, **config: Any) -> None:
    """Change the configuration and make the hashes right again."""
    path = root / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    write_manifest(root, kind=KIND, provenance={})


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, None, "1"])
def test_a_format_that_is_not_known_is_an_error_that_says_what_to_do(
    rough: FlowPrior, tmp_path: Path, version: Any
) -> None:
    """Newer code wrote it, or none."""
    rough.save(tmp_path / "prior")
    reseal(tmp_path / "prior", format=version)
    with pytest.raises(
        ArtifactError, match=r"config\.json has format .* reads 1 to 3; install the flowprior"
    ):
        FlowPrior.load(tmp_path / "prior")


@pytest.mark.parametrize(
    "name", ["velocity.safetensors", "projection.safetensors", "config.json", MANIFEST]
)
def test_a_damaged_prior_is_refused_with_the_file_and_its_maker(
    rough: FlowPrior, tmp_path: Path, name: str
) -> None:
    """One bit in any file, or the file gone."""
    rough.save(tmp_path / "prior")
    path = tmp_path / "prior" / name
    content = bytearray(path.read_bytes())
    content[-20] ^= 0x80
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name} .*`train_flow` or `FlowPrior\.save`"):
        FlowPrior.load(tmp_path / "prior")
    path.unlink()
    with pytest.raises(ArtifactError, match=rf"{name}.*`train_flow` or `FlowPrior\.save`"):
        FlowPrior.load(tmp_path / "prior")


def test_a_prior_that_is_absent_is_an_error_that_names_its_maker(tmp_path: Path) -> None:
    """Rather than a missing file deep inside."""
    with pytest.raises(
        ArtifactError, match="absent does not exist; it is made by the stage `train_flow`"
    ):
        FlowPrior.load(tmp_path / "absent")


@pytest.mark.parametrize(
    "config",
    [
        {"dim": 4},
        {"width": 17},
        {"depth": 2},
        {"depth": 0},
        {"dim": "3"},
        {"dim": None},
        {"width": -1},
    ],
    ids=str,
)
def test_weights_that_do_not_fit_the_description_are_refused(
    rough: FlowPrior, tmp_path: Path, config: dict[str, Any]
) -> None:
    """Every tensor must be there, no other, and of the right shape: loading is strict."""
    rough.save(tmp_path / "prior")
    reseal(tmp_path / "prior", **config)
    with pytest.raises(ArtifactError, match="does not hold the prior it describes"):
        FlowPrior.load(tmp_path / "prior")


def test_a_configuration_that_is_no_object_is_refused(rough: FlowPrior, tmp_path: Path) -> None:
    """A list under a valid seal is damage like any other."""
    rough.save(tmp_path / "prior")
    (tmp_path / "prior" / "config.json").write_text("[]")
    write_manifest(tmp_path / "prior", kind=KIND, provenance={})
    with pytest.raises(ArtifactError, match=r"config\.json"):
        FlowPrior.load(tmp_path / "prior")


def test_a_prior_of_the_first_format_is_read(rough: FlowPrior, tmp_path: Path) -> None:
    """It had no targets, and its network modelled them with their mean."""
    plain = FlowPrior(rough.velocity.velocity, rough.projection, 7)
    plain.save(tmp_path)
    config = read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps(config | {"format": 1}))
    write_manifest(tmp_path, kind=KIND, provenance={})
    assert not (tmp_path / "targets.safetensors").exists()
    loaded = FlowPrior.load(tmp_path)
    latents = latents_of(10, 3)
    assert (loaded.targets, loaded.time_groups) == (None, 7)
    assert torch.equal(loaded.nll(latents), plain.nll(latents))


def test_a_compiled_prior_is_saved_and_a_stranger_is_not(rough: FlowPrior, tmp_path: Path) -> None:
    """A compiled module is the same prior; a velocity of one's own cannot be built again."""
    torch.compile(rough).save(tmp_path / "compiled")
    assert torch.equal(FlowPrior.load(tmp_path / "compiled").targets, rough.targets)

    class Zero(nn.Module):
        dim = 3

    stranger = FlowPrior(Zero(), Projection(torch.eye(3), 1.0, "identity", 0))
    with pytest.raises(ValueError, match="a Zero cannot be saved"):
        stranger.save(tmp_path / "stranger")


def test_a_path_may_begin_at_home(
    rough: FlowPrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    rough.save("~/prior")
    assert (tmp_path / "prior" / "config.json").is_file()
    assert FlowPrior.load("~/prior").dim == 3


def test_loading_leaves_the_global_stream_alone(rough: FlowPrior, tmp_path: Path) -> None:
    """Whether a prior was loaded must not change what a run draws next."""
    rough.save(tmp_path / "prior")
    before = torch.random.get_rng_state()
    FlowPrior.load(tmp_path / "prior")
    assert torch.equal(torch.random.get_rng_state(), before)


# --- the package ------------------------------------------------------------------------------------


def run_python(code: str) -> str:
    """What a fresh interpreter prints."""
    source = str(Path(flowprior.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": source},
    ).stdout.strip()


def test_importing_the_package_does_not_import_torch() -> None:
    """A stage validates its parameters before it pays for torch."""
    heavy = "[m for m in ('torch', 'numpy', 'sklearn', 'jaxtyping') if m in sys.modules]"
    assert run_python(f"import sys, flowprior; print({heavy})") == "[]"
    assert run_python(f"import sys, flowprior.core.io; print({heavy})") == "[]"


def test_public_names_are_found_on_first_use() -> None:
    """Those of the README, each the object of its home; others are missing as from any module."""
    from flowprior.flow.losses import alignment_loss

    assert flowprior.alignment_loss is alignment_loss
    assert flowprior.FlowPrior is FlowPrior
    names = {"Autoencoder", "FlowPrior", "Generator", "__version__", "alignment_loss"}
    assert set(dir(flowprior)) == names
    assert all(hasattr(flowprior, name) for name in dir(flowprior))
    with pytest.raises(AttributeError, match="module 'flowprior' has no attribute 'FlowPriors'"):
        flowprior.FlowPriors  # noqa: B018


def test_saving_never_removes_what_is_not_a_prior(tmp_path: Path) -> None:
    """A directory with other files stays as it is; one with a saved prior, or an empty one, is replaced."""
    prior = FlowPrior(VelocityMLP(2, 8, 1), Projection(torch.eye(2), 1.0, "identity", 0))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    with pytest.raises(ValueError, match="something other than a flow prior"):
        prior.save(tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").read_text() == "years"
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        prior.save(tmp_path / "empty")
    assert FlowPrior.load(tmp_path / "empty").dim == 2
