"""How many tokens are revealed when, in how many steps, and which steps are guided."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowprior.mar.schedules import guided_spans, head_schedule, mask_schedule

from .small import PROPERTY, sample, trained


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


def test_annealing_at_the_papers_size() -> None:
    """50 to 5 steps over 64 iterations are 1760 evaluations; 50 throughout are 3200."""
    assert sum(head_schedule(50, 5, 64)) == 1760


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
