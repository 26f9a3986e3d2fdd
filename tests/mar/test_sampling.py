"""What MAR samples: each token once, by the generator alone, guided where it is asked."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from flowprior.core import rng
from flowprior.flow.ode import integrate
from flowprior.mar import model as mar_module
from flowprior.mar.model import MAR
from flowprior.mar.schedules import head_schedule, mask_schedule

from .small import Constant, fresh, places, sample, trained

N, D, CLASSES = 7, 3, 4


def constant_by_class(patch: pytest.MonkeyPatch) -> MAR:
    """A MAR whose velocity is 1 without a class and 3 with one."""
    model = fresh()
    model.head = Constant(D, 4, 1, condition_dim=16)

    def conditions(tokens: Tensor, labels: Tensor, orders: Tensor, num_masked: int) -> Tensor:
        answer = torch.where(labels == model.no_class, 1.0, 3.0)
        return answer.view(-1, 1, 1).expand(-1, N, 16)

    patch.setattr(model, "conditions", conditions)
    return model


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("num_iterations", [1, 2, 5, N])
def test_every_token_is_drawn_exactly_once(
    monkeypatch: pytest.MonkeyPatch, num_iterations: int, guidance_scale: float
) -> None:
    """The head's answers, numbered, all stand in the sequence in the end, and context is never rewritten."""
    model, drawn, seen = trained(), [], []

    def numbered(field: Any, noise: Tensor, num_steps: int, *rest: Any) -> Tensor:
        count = sum(drawn) + 1 + torch.arange(noise.shape[1], dtype=torch.float32)
        drawn.append(noise.shape[1])
        return count.view(1, -1, 1).expand_as(noise)

    conditions = model.conditions

    def watched(tokens: Tensor, labels: Tensor, orders: Tensor, num_masked: int) -> Tensor:
        seen.append((tokens[:3].clone(), places(orders[:3, num_masked:])))
        return conditions(tokens, labels, orders, num_masked)

    monkeypatch.setattr(mar_module, "integrate", numbered)
    monkeypatch.setattr(model, "conditions", watched)
    tokens = sample(model, num_iterations=num_iterations, guidance_scale=guidance_scale)
    assert drawn == [now - then for now, then in pairwise([N, *mask_schedule(N, num_iterations)])]
    expected = torch.arange(1.0, N + 1).expand(3, N)
    assert torch.equal(tokens[..., 0].sort(dim=-1).values, expected)
    for context, visible in seen:
        # What is visible is what was drawn so far, and it is already what it will be.
        assert torch.equal(context[..., 0] > 0, visible)
        assert torch.equal(context[visible], tokens[visible])


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_sampling_depends_on_the_generator_alone(guidance_scale: float) -> None:
    """Equal generators give equal sequences to the bit, others do not."""
    model = trained()
    first = sample(model, guidance_scale=guidance_scale)
    torch.rand(3)
    assert torch.equal(sample(model, guidance_scale=guidance_scale), first)
    assert not torch.equal(sample(model, "other", guidance_scale=guidance_scale), first)
    assert first.shape == (3, N, D)
    assert first.isfinite().all()
    assert not first.requires_grad


def plain_sample(
    model: MAR, b: int, num_iterations: int, head_steps: int, solver: str, scale: float, grows: bool
) -> Tensor:
    """Sampling without an option but guidance, written down again: steps and noise alike in every iteration."""
    generator, tokens = rng.generator(0, "sample"), torch.zeros(b, N, D)
    orders, labels = torch.rand(b, N, generator=generator).argsort(-1), torch.arange(b) % CLASSES
    left = N
    for then in mask_schedule(N, num_iterations):
        with torch.no_grad():
            if scale == 1:
                known = model.conditions(tokens, labels, orders, left)
            else:
                both = torch.cat([labels, torch.full((b,), CLASSES)])
                known = model.conditions(
                    torch.cat([tokens, tokens]), both, torch.cat([orders, orders]), left
                )
        new = orders[:, then:left]
        rows = new.repeat(len(known) // b, 1).unsqueeze(-1)
        condition = known.gather(1, rows.expand(-1, -1, known.shape[-1]))
        s = 1 + (scale - 1) * (N - then) / N if grows else scale

        def velocity(x: Tensor, t: Tensor, given: Tensor = condition, s: float = s) -> Tensor:
            if scale == 1:
                return model.head(x, t, given)
            mine, none = model.head(torch.cat([x, x]), t, given).chunk(2)
            return none + s * (mine - none)

        with torch.no_grad():
            noise = torch.randn(b, left - then, D, generator=generator)
            drawn = integrate(velocity, noise, head_steps, solver)
        tokens.scatter_(1, new.unsqueeze(-1).expand(-1, -1, D), drawn)
        left = then
    return tokens


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize(
    ("scale", "schedule"), [(1.0, "linear"), (2.5, "linear"), (2.5, "constant")]
)
def test_without_options_sampling_is_the_plain_loop_to_the_bit(
    solver: str, scale: float, schedule: str
) -> None:
    """And so it is with every option at the value that means nothing."""
    model = trained()
    plain = plain_sample(model, 3, 3, 4, solver, scale, schedule == "linear")
    options = {"solver": solver, "guidance_scale": scale, "guidance_schedule": schedule}
    assert torch.equal(sample(model, **options), plain)
    idle = {"final_head_steps": 4, "churn": 0, "guidance_interval": (0, 1), "temperature": 1}
    assert torch.equal(sample(model, **options, **idle), plain)


def head_rows(model: MAR, **options: Any) -> list[int]:
    """Sequences in each evaluation of the head while three are sampled."""
    rows: list[int] = []
    hook = model.head.register_forward_hook(lambda module, inputs, out: rows.append(len(out)))
    sample(model, **options)
    hook.remove()
    return rows


@pytest.mark.parametrize(("solver", "each"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_annealing_saves_evaluations_of_the_head(
    solver: str, each: int, guidance_scale: float
) -> None:
    """12 steps in the first of 7 iterations and 3 in the last are half of 12 in all, and a little more."""
    options = {"num_iterations": N, "solver": solver, "guidance_scale": guidance_scale}
    model = trained()
    rows = 3 if guidance_scale == 1 else 6
    assert head_rows(model, head_steps=12, **options) == [rows] * 12 * N * each
    annealed = sum(head_schedule(12, 3, N))
    assert annealed == 52
    found = head_rows(model, head_steps=12, final_head_steps=3, **options)
    assert found == [rows] * annealed * each


def test_annealing_leaves_the_first_iteration_as_it_is() -> None:
    """Fewer steps change only what comes later, and that little by little."""
    model = trained()
    plain = sample(model, num_iterations=2, head_steps=64)
    annealed = sample(model, num_iterations=2, head_steps=64, final_head_steps=32)
    early = (plain == annealed).all(-1)
    assert early.sum(-1).tolist() == [N - mask_schedule(N, 2)[0]] * 3
    assert 0 < (plain - annealed).abs().max() < 0.5


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_outside_the_interval_there_is_no_guidance(
    monkeypatch: pytest.MonkeyPatch, solver: str
) -> None:
    """v(no class) = 1, v(class) = 3, scale 2.5: 40% of the way at 1 + 2 s, the rest at 3."""
    model = constant_by_class(monkeypatch)
    found = sample(
        model,
        head_steps=10,
        solver=solver,
        temperature=0.0,
        guidance_scale=2.5,
        guidance_schedule="constant",
        guidance_interval=(0.3, 0.7),
    )
    torch.testing.assert_close(found, torch.full((3, N, D), 0.4 * (1 + 2 * 2.5) + 0.6 * 3))


def test_steps_outside_the_interval_cost_half() -> None:
    """And an iteration without a guided step is that without guidance, to the bit, transformer included."""
    model = trained()
    options: dict[str, Any] = {"num_iterations": 2, "head_steps": 10, "guidance_scale": 3.0}
    rows = head_rows(model, **options, guidance_interval=(0.3, 0.7))
    assert rows == ([3] * 3 + [6] * 4 + [3] * 3) * 2
    plain = sample(model, num_iterations=2, head_steps=10)
    none = sample(model, **options, guidance_interval=(0.91, 0.99))
    assert torch.equal(none, plain)
    some = sample(model, **options, guidance_interval=(0.3, 0.7))
    whole = sample(model, **options)
    assert not torch.equal(some, plain)
    assert not torch.equal(some, whole)


OPTIONS: list[dict[str, Any]] = [
    {"final_head_steps": 2},
    {"guidance_scale": 2.0, "guidance_interval": (0.2, 0.6)},
    {"churn": 1.0},
    {"churn": 0.5, "guidance_scale": 2.0, "guidance_interval": (0.2, 0.6), "final_head_steps": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_keep_the_seed_and_fill_every_token_once(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Equal generators, equal sequences; and context once drawn stays."""
    model, seen = trained(), []
    conditions = model.conditions

    def watched(tokens: Tensor, labels: Tensor, orders: Tensor, num_masked: int) -> Tensor:
        seen.append((tokens[:3].clone(), places(orders[:3, num_masked:])))
        return conditions(tokens, labels, orders, num_masked)

    monkeypatch.setattr(model, "conditions", watched)
    first = sample(model, num_iterations=N, **options)
    assert [int(visible.sum()) for _, visible in seen] == [3 * k for k in range(N)]
    for context, visible in seen:
        assert torch.equal(context.abs().sum(-1) > 0, visible)
        assert torch.equal(context[visible], first[visible])
    assert first.abs().sum(-1).min() > 0
    assert first.isfinite().all()
    assert torch.equal(sample(model, num_iterations=N, **options), first)
    assert not torch.equal(sample(model, "other", num_iterations=N, **options), first)


@pytest.mark.parametrize("churn", [0.0, 1.0])
def test_at_temperature_zero_nothing_is_left_to_chance(churn: float) -> None:
    """Where all tokens come at once, so that the order does not matter, every seed gives the same."""
    model = trained()
    cold, other, warm, warm_other = (
        sample(model, tag, num_iterations=1, churn=churn, temperature=temperature)
        for temperature in (0, 1)
        for tag in ("a", "b")
    )
    # The rows of a matrix product in another order, in float32.
    torch.testing.assert_close(cold, other, rtol=1e-5, atol=1e-6)
    assert (warm - warm_other).abs().max() > 0.1
    assert (cold - warm).abs().max() > 0.1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"churn": -1.0}, "churn"),
        ({"churn": 1.0, "solver": "heun"}, "'heun'"),
    ],
    ids=str,
)
def test_options_out_of_range_are_an_error(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sample(trained(), **options)


def test_sampling_works_under_autocast() -> None:
    """As on a GPU in bf16: tokens stay float32, and near those without."""
    model = trained()
    plain = sample(model, num_iterations=1)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = sample(model, num_iterations=1)
        guided = sample(model, guidance_scale=2.0, guidance_interval=(0.2, 0.8))
    assert rounded.dtype == guided.dtype == torch.float32
    assert guided.isfinite().all()
    assert (rounded - plain).norm() < 0.1 * plain.norm()


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_an_untrained_head_samples_noise_of_the_temperature(temperature: float) -> None:
    """Its velocity is zero: tokens are N(0, temperature^2)."""
    tokens = sample(fresh(), b=400, temperature=temperature)
    # 8400 independent numbers: relative standard error of the std 0.8%.
    assert tokens.std().item() == pytest.approx(temperature, rel=0.035)
    assert tokens.mean().item() == pytest.approx(0, abs=0.05 * temperature)


def test_a_guidance_scale_of_one_is_no_guidance() -> None:
    """To the bit, with either schedule: the second half of the batch is not even computed."""
    model = trained()
    calls = []
    model.head.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    plain = sample(model)
    assert set(calls) == {3}
    for schedule in ("linear", "constant"):
        assert torch.equal(sample(model, guidance_scale=1.0, guidance_schedule=schedule), plain)


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_guidance_between_equals_changes_nothing(schedule: str) -> None:
    """Where class and no class have the same embedding, no scale matters."""
    model = trained()
    with torch.no_grad():
        model.class_table.weight[:] = model.class_table.weight[0]
    plain = sample(model)
    guided = sample(model, guidance_scale=5.0, guidance_schedule=schedule)
    # Two halves of one batch, in float32; a scale of 5 and three passes multiply their rounding.
    torch.testing.assert_close(guided, plain, rtol=1e-3, atol=1e-3)


def test_guidance_moves_what_is_sampled() -> None:
    """Else the test above would say nothing; the schedules differ as well."""
    model = trained()
    plain = sample(model)
    linear = sample(model, guidance_scale=5.0)
    constant = sample(model, guidance_scale=5.0, guidance_schedule="constant")
    assert (linear - plain).abs().max() > 0.1
    assert (constant - linear).abs().max() > 0.1


@pytest.mark.parametrize("num_iterations", [1, 3, N])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_the_linear_schedule_grows_with_the_share_of_revealed_tokens(
    monkeypatch: pytest.MonkeyPatch, num_iterations: int, solver: str
) -> None:
    """v(no class) = 1 and v(class) = 3 from zero noise give 1 + 2 s_k; s_k = 1 + (s - 1) (n - left) / n."""
    model = constant_by_class(monkeypatch)
    options = {"num_iterations": num_iterations, "solver": solver, "temperature": 0.0}
    linear = sample(model, guidance_scale=2.5, **options)
    left = mask_schedule(N, num_iterations)
    expected = [
        1 + 2 * (1 + 1.5 * (N - then) / N)
        for now, then in pairwise([N, *left])
        for _ in range(now - then)
    ]
    # A constant velocity is integrated exactly but for the rounding of four steps.
    torch.testing.assert_close(
        linear[..., 0].sort(dim=-1).values, torch.tensor(expected).expand(3, N)
    )
    constant = sample(model, guidance_scale=2.5, guidance_schedule="constant", **options)
    torch.testing.assert_close(constant, torch.full((3, N, D), 1 + 2 * 2.5))


def test_euler_and_heun_solve_the_same_equation() -> None:
    """They meet as the steps shrink: Heun's error is far below Euler's, and Euler's halves with the step."""
    model = trained()
    exact = sample(model, num_iterations=1, head_steps=256, solver="heun")

    def error(head_steps: int, solver: str) -> float:
        tokens = sample(model, num_iterations=1, head_steps=head_steps, solver=solver)
        return float((tokens - exact).norm())

    assert error(32, "euler") / error(64, "euler") == pytest.approx(2, rel=0.15)
    assert error(32, "heun") < 0.1 * error(32, "euler")


def test_the_orders_of_sequences_differ() -> None:
    """Places are revealed in an order of each sequence's own, every place first now and then."""
    model, firsts = fresh(), []
    conditions = model.conditions

    def watched(tokens: Tensor, labels: Tensor, orders: Tensor, num_masked: int) -> Tensor:
        firsts.append(orders[:, -1])
        return conditions(tokens, labels, orders, num_masked)

    model.conditions = watched  # type: ignore[method-assign]
    sample(model, b=700, num_iterations=2, head_steps=1)
    counts = firsts[0].bincount(minlength=N)
    # The generator is fixed; a fair draw falls below once in a thousand.
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
