"""MAR: what is masked, what is looked at, and that sampling says each token once."""

import math
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from flowprior.core import rng
from flowprior.core.optim import adamw
from flowprior.flow.ode import integrate
from flowprior.flow.velocity import VelocityMLP
from flowprior.mar import model as mar_module
from flowprior.mar.masking import MaskedBatch, draw_masking, draw_num_masked, draw_orders
from flowprior.mar.model import MAR
from flowprior.mar.schedules import guided_spans, head_schedule, mask_schedule
from flowprior.mar.shape import MARShape
from tests.pipeline.closure import ROOT

PROPERTY = settings(deadline=None, derandomize=True, max_examples=60)
N, D, CLASSES = 7, 3, 4
SMALL = MARShape(
    num_tokens=N,
    dim=D,
    num_classes=CLASSES,
    width=16,
    encoder_depth=1,
    decoder_depth=1,
    num_heads=2,
    num_buffer=2,
    head_width=16,
    head_depth=1,
    dropout=0.0,
)


def normal(*shape: int, tag: str = "x") -> Tensor:
    """Fixed standard normal numbers, float32."""
    return torch.randn(*shape, generator=rng.generator(0, tag))


def fresh(shape: MARShape = SMALL) -> MAR:
    """A MAR at its initialisation, the same at every call."""
    with rng.scoped(0, "mar"):
        return MAR(shape).eval()


def trained(shape: MARShape = SMALL) -> MAR:
    """A MAR that is off its initialisation in every parameter, so that its head does not answer zero."""
    model = fresh(shape)
    draws = rng.generator(0, "trained")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=draws)
    return model


def batch(b: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, labels and orders."""
    return (
        normal(b, N, D, tag="tokens"),
        torch.arange(b) % CLASSES,
        draw_orders(b, N, rng.generator(0, "orders")),
    )


def masking(b: int = 5, num_masked: int = 4, draws: int = 2) -> MaskedBatch:
    """The arguments of `forward` with a given number of masked tokens."""
    tokens, labels, orders = batch(b)
    noise = normal(draws, b, num_masked, D, tag="noise")
    t = torch.rand(draws, b, num_masked, generator=rng.generator(0, "t"))
    return MaskedBatch(tokens, labels, orders, num_masked, noise, t)


def places(index: Tensor) -> Tensor:
    """A mask [b, n] that is true at the given places."""
    return torch.zeros(len(index), N, dtype=torch.bool).scatter(1, index, True)


class Constant(VelocityMLP):
    """A head whose velocity is its condition's first channels, wherever and whenever."""

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return condition[..., : x.shape[-1]]


# --- how many are revealed when ---------------------------------------------------------------------


@PROPERTY
@given(data=st.data(), n=st.integers(1, 300))
def test_the_mask_shrinks_at_every_iteration_until_nothing_is_masked(
    data: st.DataObject, n: int
) -> None:
    """It starts below n, decreases strictly, and ends in 0 after exactly `num_iterations`."""
    num_iterations = data.draw(st.integers(1, n))
    left = mask_schedule(n, num_iterations)
    assert len(left) == num_iterations
    assert left[0] < n
    assert left[-1] == 0
    assert all(now > then for now, then in pairwise(left))


@pytest.mark.parametrize("n", [1, 2, 8, 64, 100])
def test_as_many_iterations_as_tokens_reveal_one_token_each(n: int) -> None:
    """The paper's 64 of 64 are fully autoregressive in a random order."""
    assert mask_schedule(n, n) == list(range(n - 1, -1, -1))


@pytest.mark.parametrize(("n", "num_iterations"), [(64, 1), (64, 8), (256, 16), (1000, 10)])
def test_few_iterations_follow_the_cosine(n: int, num_iterations: int) -> None:
    """floor(n cos(pi k / 2 K)) are left after iteration k: few are revealed at first, many at the end."""
    left = mask_schedule(n, num_iterations)
    cosine = [
        math.floor(n * math.cos(math.pi / 2 * k / num_iterations)) for k in range(1, num_iterations)
    ]
    assert left == [*cosine, 0]
    revealed = [now - then for now, then in pairwise([n, *left])]
    # Floors make neighbours differ by one from the smooth curve.
    assert all(later >= earlier - 1 for earlier, later in pairwise(revealed))


@pytest.mark.parametrize(("n", "num_iterations"), [(8, 0), (8, -1), (8, 9), (1, 2)])
def test_iterations_that_would_reveal_nothing_are_an_error(n: int, num_iterations: int) -> None:
    """It says how many there may be and how many there were."""
    with pytest.raises(ValueError, match=f"between 1 and the {n} tokens, found {num_iterations}"):
        mask_schedule(n, num_iterations)


# --- what training masks ----------------------------------------------------------------------------


@PROPERTY
@given(b=st.integers(1, 8), n=st.integers(1, 40), seed=st.integers(0, 1000))
def test_orders_are_permutations(b: int, n: int, seed: int) -> None:
    """Every place once in every sequence."""
    orders = draw_orders(b, n, rng.generator(seed))
    assert torch.equal(orders.sort(dim=-1).values, torch.arange(n).expand(b, n))


def test_orders_are_uniform_and_independent() -> None:
    """All 36 pairs of orders of two sequences of three places come equally often."""
    orders = draw_orders(2 * 7200, 3, rng.generator(0, "orders")).view(-1, 6).tolist()
    every = [[*one, *two] for one in permutations(range(3)) for two in permutations(range(3))]
    counts = [orders.count(pair) for pair in every]
    assert sum(counts) == 7200
    # The generator is fixed; a fair draw falls below once in a thousand.
    assert stats.chisquare(counts).pvalue > 1e-3


@PROPERTY
@given(n=st.integers(1, 300), seed=st.integers(0, 10_000))
def test_between_seven_tenths_and_all_tokens_are_masked(n: int, seed: int) -> None:
    """ceil(0.7 n) to n, bounds included, and never none."""
    assert math.ceil(0.7 * n) <= draw_num_masked(n, rng.generator(seed)) <= n


def test_the_number_of_masked_tokens_is_a_truncated_normal_rounded_up() -> None:
    """Frequencies and mean are those of ceil(64 r), r ~ scipy's truncnorm of N(1, 0.25^2) to [0.7, 1]."""
    n, draws = 64, 4000
    ratio = stats.truncnorm(-0.3 / 0.25, 0.0, loc=1.0, scale=0.25)
    counts = np.arange(math.ceil(0.7 * n), n + 1)
    probability = ratio.cdf(counts / n) - ratio.cdf((counts - 1) / n)
    assert probability.sum() == pytest.approx(1, abs=1e-12)
    generator = rng.generator(0, "masked")
    found = np.array([draw_num_masked(n, generator) for _ in range(draws)])
    mean = (counts * probability).sum()
    standard_error = math.sqrt(((counts - mean) ** 2 * probability).sum() / draws)
    assert mean == pytest.approx(56, abs=0.5)  # reference.md §7: about 56 of 64
    assert found.mean() == pytest.approx(mean, abs=4 * standard_error)
    frequencies = [(found == count).sum() for count in counts]
    # The generator is fixed; a fair draw falls below once in a thousand.
    assert stats.chisquare(frequencies, draws * probability).pvalue > 1e-3


def test_a_masking_has_the_shapes_that_forward_takes() -> None:
    """Draws of noise and time for each masked token, and tokens and labels as they came."""
    tokens, labels, _ = batch()
    drawn = draw_masking(tokens, labels, 4, rng.generator(0))
    m = drawn.num_masked
    assert drawn.tokens is tokens
    assert drawn.labels is labels
    assert drawn.orders.shape == (5, N)
    assert drawn.noise.shape == (4, 5, m, D)
    assert drawn.t.shape == (4, 5, m)
    assert 0 <= drawn.t.min() < drawn.t.max() < 1
    again = draw_masking(tokens, labels, 4, rng.generator(0))
    assert all(
        torch.equal(torch.as_tensor(a), torch.as_tensor(b))
        for a, b in zip(drawn, again, strict=True)
    )


def test_the_ratio_of_masked_tokens_can_be_set() -> None:
    """Its bound and its spread reach the draw; outside their range they are an error."""
    tokens, labels, _ = batch()
    low = [
        draw_masking(tokens, labels, 1, rng.generator(i), ratio_low=0.1, ratio_std=1.0).num_masked
        for i in range(60)
    ]
    assert min(low) <= 2
    assert max(low) == N
    all_masked = draw_masking(tokens, labels, 1, rng.generator(0), ratio_low=1.0)
    assert all_masked.num_masked == N
    for wrong in ({"ratio_low": -0.1}, {"ratio_low": 1.1}, {"ratio_std": 0.0}):
        with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
            draw_masking(tokens, labels, 1, rng.generator(0), **wrong)


# --- what conditions look at ------------------------------------------------------------------------


@pytest.mark.parametrize("num_masked", [1, 4, N])
def test_conditions_do_not_look_at_masked_tokens(num_masked: int) -> None:
    """Whatever stands there, not even a number, the answer is the same to the bit."""
    model = trained()
    tokens, labels, orders = batch()
    hidden = places(orders[:, :num_masked])
    other = tokens.masked_fill(hidden.unsqueeze(-1), math.nan)
    one, two = (model.conditions(x, labels, orders, num_masked) for x in (tokens, other))
    assert one.isfinite().all()
    assert torch.equal(one, two)


@pytest.mark.parametrize("place", range(N))
def test_conditions_look_at_every_visible_token(place: int) -> None:
    """A change to it moves the condition of every place of its own sequence and of no other."""
    model = trained()
    tokens, labels, orders = batch()
    num_masked = 3
    changed = tokens.clone()
    changed[:, place] += 1
    visible = places(orders[:, num_masked:])[:, place]
    before, after = (model.conditions(x, labels, orders, num_masked) for x in (tokens, changed))
    moved = (after - before).norm(dim=-1)
    assert moved[visible].min() > 1e-4
    assert not moved[~visible].any()


@pytest.mark.parametrize("num_masked", [0, 3, N])
def test_conditions_look_at_the_label(num_masked: int) -> None:
    """Any two of the classes and "no class" say something else at every place."""
    model = trained()
    tokens, _, orders = batch(1)
    assert model.no_class == CLASSES
    said = [
        model.conditions(tokens, torch.tensor([label]), orders, num_masked)
        for label in range(CLASSES + 1)
    ]
    for i, one in enumerate(said):
        for two in said[:i]:
            assert (one - two).norm(dim=-1).min() > 1e-4


def test_conditions_do_not_depend_on_the_order_within_the_visible_and_within_the_masked() -> None:
    """Only on which places are visible: attention sees a set of tokens with positions."""
    model = trained()
    tokens, labels, orders = batch()
    num_masked = 4
    before = model.conditions(tokens, labels, orders, num_masked)
    masked_turned = torch.cat([orders[:, :num_masked].flip(1), orders[:, num_masked:]], dim=1)
    assert torch.equal(model.conditions(tokens, labels, masked_turned, num_masked), before)
    both_turned = torch.cat([orders[:, :num_masked], orders[:, num_masked:].flip(1)], dim=1)
    # The sums of the attention run in another order, in float32.
    torch.testing.assert_close(
        model.conditions(tokens, labels, both_turned, num_masked), before, rtol=1e-4, atol=1e-4
    )


def test_dropout_acts_in_training_only() -> None:
    """And then it reads torch's global stream, which `rng.scoped` fixes."""
    model = trained(SMALL._replace(dropout=0.3))
    tokens, labels, orders = batch()
    arguments = (tokens, labels, orders, 3)
    assert torch.equal(model.conditions(*arguments), model.conditions(*arguments))
    model.train()
    said = []
    for tag in ("a", "a", "b"):
        with rng.scoped(0, tag):
            said.append(model.conditions(*arguments))
    assert torch.equal(said[0], said[1])
    assert not torch.equal(said[0], said[2])


# --- the loss ---------------------------------------------------------------------------------------


def test_the_loss_at_initialisation_is_one_plus_the_variance_of_the_data() -> None:
    """The head answers zero, so that E (data - noise)^2 = 1 + E data^2 remains, whatever the masking."""
    b, draws = 200, 32
    tokens = 1.5 * normal(b, N, D, tag="tokens")
    drawn = draw_masking(tokens, torch.arange(b) % CLASSES, draws, rng.generator(0))
    assert not fresh().head(tokens, torch.zeros(b, N), torch.zeros(b, N, 16)).any()
    masked = tokens.gather(1, drawn.orders[:, : drawn.num_masked, None].expand(-1, -1, D))
    exact = (masked - drawn.noise).square().mean().item()
    found = fresh()(*drawn).item()
    # Sums of 1e5 float32 numbers in another order.
    assert found == pytest.approx(exact, rel=1e-5)
    # Relative standard error: sqrt(2 / 3500 tokens x dims) = 2%, of the variance of the data alone.
    assert found == pytest.approx(1 + 1.5**2, rel=0.06)


def test_the_loss_is_the_mean_of_the_head_over_masked_tokens_and_draws() -> None:
    """Token by token and draw by draw: (v(x_t, t | condition) - (data - noise))^2."""
    model = trained()
    tokens, labels, orders, m, draws, times = arguments = masking(3)
    conditions = model.conditions(tokens, labels, orders, m)
    losses = []
    for k in range(2):
        for i in range(3):
            for j, place in enumerate(orders[i, :m].tolist()):
                data, noise, t = tokens[i, place], draws[k, i, j], times[k, i, j]
                x_t = (1 - t) * noise + t * data
                answer = model.head(x_t, t, conditions[i, place])
                losses.append((answer - (data - noise)).square().mean().item())
    # A float32 network on one vector at a time or on all.
    assert model(*arguments).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_masked_tokens_are_targets_only_and_visible_ones_context_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the conditions cut off, the gradient of masked tokens stays to the bit, that of visible ones is zero."""
    model = trained()
    tokens, *arguments = masking()
    masked = places(arguments[1][:, : arguments[2]])

    def gradient() -> Tensor:
        leaf = tokens.clone().requires_grad_()
        (found,) = torch.autograd.grad(model(leaf, *arguments), leaf)
        return found

    whole = gradient()
    conditions = model.conditions
    monkeypatch.setattr(model, "conditions", lambda *args: conditions(*args).detach())
    as_targets = gradient()
    assert torch.equal(whole[masked], as_targets[masked])
    assert whole[masked].abs().min() > 0
    assert not as_targets[~masked].any()
    assert whole[~masked].abs().amax(-1).min() > 0


def test_the_gradient_of_the_loss_reaches_every_parameter() -> None:
    """But for the rows of classes that are not in the batch."""
    model = trained()
    model(*masking()).backward()
    unused = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ]
    assert not unused
    table = model.class_table.weight.grad
    assert table is not None
    assert not table[model.no_class].any()


# --- sampling ---------------------------------------------------------------------------------------


def sample(model: MAR, tag: str = "sample", b: int = 3, **options: Any) -> Tensor:
    """Sequences drawn with a generator of their own."""
    plain: dict[str, Any] = {"num_iterations": 3, "head_steps": 4}
    return model.sample(torch.arange(b) % CLASSES, rng.generator(0, tag), **plain | options)


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


# --- steps of the head ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "final", "iterations", "expected"),
    [
        (50, 5, 4, [50, 35, 20, 5]),
        (4, 1, 7, [4, 4, 3, 2, 2, 2, 1]),
        (9, None, 3, [9, 9, 9]),
        (9, 9, 2, [9, 9]),
        (9, 2, 1, [9]),
    ],
)
def test_steps_of_the_head_fall_in_a_straight_line(
    first: int, final: int | None, iterations: int, expected: list[int]
) -> None:
    """Rounded to the even neighbour at a half; one iteration is the first."""
    assert head_schedule(first, final, iterations) == expected


@pytest.mark.parametrize(("first", "final"), [(0, None), (5, 0), (5, 6), (-1, -1)])
def test_steps_that_grow_or_vanish_are_an_error(first: int, final: int | None) -> None:
    with pytest.raises(ValueError, match=f"between 1 and head_steps \\({first}\\)"):
        head_schedule(first, final, 3)


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


def test_annealing_at_the_papers_size() -> None:
    """50 to 5 steps over 64 iterations are 1760 evaluations; 50 throughout are 3200."""
    assert sum(head_schedule(50, 5, 64)) == 1760


def test_annealing_leaves_the_first_iteration_as_it_is() -> None:
    """Fewer steps change only what comes later, and that little by little."""
    model = trained()
    plain = sample(model, num_iterations=2, head_steps=64)
    annealed = sample(model, num_iterations=2, head_steps=64, final_head_steps=32)
    early = (plain == annealed).all(-1)
    assert early.sum(-1).tolist() == [N - mask_schedule(N, 2)[0]] * 3
    assert 0 < (plain - annealed).abs().max() < 0.5


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.0, 1.0), [(0, 10, True)]),
        ((0.3, 0.7), [(0, 3, False), (3, 7, True), (7, 10, False)]),
        ((0, 0.5), [(0, 5, True), (5, 10, False)]),
        ((0.25, 1), [(0, 3, False), (3, 10, True)]),
        ((0.91, 0.99), [(0, 10, False)]),
    ],
)
def test_a_step_is_guided_where_it_starts_inside(
    interval: tuple[float, float], expected: list[tuple[int, int, bool]]
) -> None:
    """Of ten steps: the lower end belongs to the interval, the upper does not."""
    assert guided_spans(10, interval) == expected


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.7, 0.3), (-0.1, 1.0), (0.0, 1.1)])
def test_an_interval_that_is_none_is_an_error(interval: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="guidance_interval"):
        sample(trained(), guidance_scale=2.0, guidance_interval=interval)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_outside_the_interval_there_is_no_guidance(
    monkeypatch: pytest.MonkeyPatch, solver: str
) -> None:
    """v(no class) = 1, v(class) = 3, scale 2.5: 40% of the way at 1 + 2 s, the rest at 3."""
    model = fresh()
    model.head = Constant(D, 4, 1, condition_dim=16)

    def conditions(tokens: Tensor, labels: Tensor, orders: Tensor, num_masked: int) -> Tensor:
        answer = torch.where(labels == model.no_class, 1.0, 3.0)
        return answer.view(-1, 1, 1).expand(-1, N, 16)

    monkeypatch.setattr(model, "conditions", conditions)
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
    model = fresh()
    model.head = Constant(D, 4, 1, condition_dim=16)

    def conditions(tokens: Tensor, labels: Tensor, orders: Tensor, num_masked: int) -> Tensor:
        answer = torch.where(labels == model.no_class, 1.0, 3.0)
        return answer.view(-1, 1, 1).expand(-1, N, 16)

    monkeypatch.setattr(model, "conditions", conditions)
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


# --- what is decayed --------------------------------------------------------------------------------


def decayed(decay: Any) -> set[str]:
    """Names of the parameters with decay."""
    model = fresh()
    groups = adamw(model, 1e-3, (0.9, 0.95), 0.02, model.undecayed(decay)).param_groups
    assert {g["weight_decay"] for g in groups} == {0.02, 0.0}
    chosen = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    return {name for name, p in model.named_parameters() if id(p) in chosen}


def test_the_decay_falls_where_it_is_wanted() -> None:
    """Never on a bias or norm; on embeddings and the head by choice."""
    model = fresh()
    matrices = {name for name, p in model.named_parameters() if p.ndim >= 2}
    linear = {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    embeddings = {
        "class_table.weight",
        "mask_token",
        "encoder_positions",
        "decoder_positions",
        "head_positions",
    }
    assert decayed("matrices") == matrices
    assert decayed("linear") == linear == matrices - embeddings
    assert decayed("authors") == {name for name in matrices if not name.startswith("head.")}
    assert embeddings < decayed("authors")


# --- the paper's size -------------------------------------------------------------------------------


def test_mar_b_has_the_papers_parameters() -> None:
    """The preset imagenet: 171.75 M in the transformers and 35,766,304 in the head, 207.5 M in all (reference.md §7).

    Transformers here means everything but the head: class table, positions and mask token included.
    """
    parameters = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    preset = parameters["presets"]["imagenet"]
    scale = preset["train_mar"]
    shape = MARShape(
        num_tokens=preset["train_ae"]["num_latents"],
        dim=preset["project"]["dim"],
        num_classes=1000,
        **{name: scale[name] for name in MARShape._fields[3:]},
    )
    with torch.device("meta"):
        model = MAR(shape)
    head = sum(p.numel() for p in model.head.parameters())
    total = sum(p.numel() for p in model.parameters())
    assert head == 35_766_304
    assert total == pytest.approx(207.5e6, rel=1e-3)
    assert total - head == pytest.approx(171.75e6, rel=1e-3)
