"""Draws depend on (seed, tags) and on nothing that ran before."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowprior.core import rng

LIKE = torch.zeros(3, 2, dtype=torch.float64)


def draw(seed: int, *tags: str | int) -> torch.Tensor:
    """A few numbers of one stream."""
    return torch.rand(8, generator=rng.generator(seed, *tags))


def test_equal_seeds_and_tags_give_equal_draws() -> None:
    """A stream can be opened twice."""
    assert torch.equal(draw(0, "noise", 3), draw(0, "noise", 3))


def test_the_seed_and_each_tag_matter() -> None:
    """No two of these purposes share their stream."""
    purposes = [
        (0,),
        (1,),
        (0, "noise"),
        (0, "times"),
        (0, "noise", 1),
        (0, "noise", 11),
        (0, 1, "noise"),
    ]
    for one, two in itertools.combinations(purposes, 2):
        assert not torch.equal(draw(*one), draw(*two)), (one, two)


def test_draws_do_not_depend_on_the_order_of_use() -> None:
    """Neither other streams nor the global one move a stream."""
    alone = draw(0, "a")
    draw(0, "b")
    torch.rand(5)
    assert torch.equal(draw(0, "a"), alone)


def test_opening_a_stream_leaves_the_global_one_alone() -> None:
    """A generator is never the default generator."""
    before = torch.random.get_rng_state()
    draw(0, "a")
    rng.normal_like(LIKE, rng.generator(0))
    rng.uniform((2,), LIKE, rng.generator(0))
    rng.permutation(4, LIKE, rng.generator(0))
    assert torch.equal(torch.random.get_rng_state(), before)


@settings(deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**40), tags=st.lists(st.text() | st.integers(), max_size=3))
def test_seeds_are_numbers_that_torch_takes(seed: int, tags: list[str | int]) -> None:
    """63 bits: not negative, below 2^63, and the same each time."""
    derived = rng.derive_seed(seed, *tags)
    assert 0 <= derived < 2**63
    assert derived == rng.derive_seed(seed, *tags)


def test_derived_seeds_never_change() -> None:
    """Golden values: the first 8 bytes of `printf 0/noise/3 | sha256sum`, shifted right by one bit."""
    assert rng.derive_seed(0, "noise", 3) == int("b8fa417c2c105577", 16) >> 1
    assert rng.derive_seed(0) == int("5feceb66ffc86f38", 16) >> 1


def test_scoped_restores_the_global_stream() -> None:
    """Code after the block draws what it would have drawn without it."""
    torch.manual_seed(1)
    expected = torch.rand(4)
    torch.manual_seed(1)
    with rng.scoped(0, "init"):
        torch.rand(100)
    assert torch.equal(torch.rand(4), expected)


def test_scoped_restores_the_global_stream_after_an_error() -> None:
    """An exception inside the block changes nothing outside."""
    before = torch.random.get_rng_state()

    def fail() -> None:
        with rng.scoped(0, "init"):
            torch.rand(1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_scoped_draws_depend_on_its_arguments_only() -> None:
    """Whatever the global stream did before, the block draws the same; other tags draw otherwise."""
    drawn = []
    for before, tag in [(1, "a"), (2, "a"), (2, "b")]:
        torch.manual_seed(before)
        with rng.scoped(0, tag):
            drawn.append(torch.rand(4))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_scopes_nest() -> None:
    """An inner scope does not move the outer one."""
    with rng.scoped(0, "outer"):
        expected = torch.rand(4)
    with rng.scoped(0, "outer"):
        with rng.scoped(0, "inner"):
            torch.rand(3)
        assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_noise_takes_shape_and_dtype_from_its_model(dtype: torch.dtype) -> None:
    """Normal and uniform draws have the dtype and device of `like`."""
    like = LIKE.to(dtype)
    for drawn, shape in [
        (rng.normal_like(like, rng.generator(0)), (3, 2)),
        (rng.normal((4,), like, rng.generator(0)), (4,)),
        (rng.uniform((4, 1), like, rng.generator(0)), (4, 1)),
    ]:
        assert (drawn.shape, drawn.dtype, drawn.device) == (shape, dtype, like.device)


def test_draws_have_the_moments_of_their_names() -> None:
    """N(0, 1) and U(0, 1), by mean and variance."""
    n = 100_000
    noise = rng.normal((n,), LIKE, rng.generator(0))
    times = rng.uniform((n,), LIKE, rng.generator(0))
    # Standard errors: sqrt(1/n) = .0032, sqrt(2/n) = .0045, sqrt(1/12n) = .0009, sqrt(1/180n) = .0002; five of each.
    assert noise.mean().item() == pytest.approx(0, abs=0.016)
    assert noise.var().item() == pytest.approx(1, abs=0.023)
    assert times.mean().item() == pytest.approx(1 / 2, abs=0.005)
    assert times.var().item() == pytest.approx(1 / 12, abs=0.0012)
    assert times.min() >= 0
    assert times.max() < 1


def test_a_permutation_holds_every_index_once() -> None:
    """0 .. n-1, each once, in an order that the generator fixes."""
    order = rng.permutation(50, LIKE, rng.generator(0))
    assert order.sort().values.tolist() == list(range(50))
    assert torch.equal(order, rng.permutation(50, LIKE, rng.generator(0)))
    assert not torch.equal(order, rng.permutation(50, LIKE, rng.generator(1)))


def test_without_a_generator_the_global_stream_is_used() -> None:
    """`torch.manual_seed` then decides."""
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append(
            [rng.normal_like(LIKE), rng.uniform((3,), LIKE, None), rng.permutation(9, LIKE, None)]
        )
    assert all(torch.equal(one, two) for one, two in zip(*drawn, strict=True))
