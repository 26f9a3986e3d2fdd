"""Augmentation: known answers for each change, and that it is drawn for the global batch."""

from functools import partial

import pytest
import torch
from torch import Tensor

from flowprior.core import rng
from flowprior.core.rng import Draw
from flowprior.reconstruction.augment import (
    STRONG,
    WEAK,
    Augmentation,
    Policy,
    augment,
    draw_augmentation,
)

NEVER = Policy(0.0, 0.125, 0.2)


def images(b: int = 4, side: int = 16, dtype: torch.dtype = torch.float32) -> Tensor:
    """Fixed noise in [-1, 1]."""
    return torch.rand(b, 3, side, side, generator=rng.generator(0, "x"), dtype=dtype) * 2 - 1


def part(draws: Tensor, dim: int, rank: int = 0, ranks: int = 1) -> Tensor:
    """What a rank keeps."""
    return draws.chunk(ranks, dim)[rank]


def draw(seed: int = 0, b: int = 4, rank: int = 0, ranks: int = 1) -> Draw:
    """The draw of a global batch of `b` images, as a rank sees it."""
    return Draw(rng.generator(seed, "augment"), b, partial(part, rank=rank, ranks=ranks))


def only(policy: Policy = STRONG, **numbers: Tensor) -> Augmentation:
    """An augmentation with some of its changes."""
    return Augmentation(policy, *(numbers.get(name) for name in ("colour", "shift", "hole")))


def test_with_probability_zero_nothing_changes() -> None:
    x = images()
    assert torch.equal(augment(x, draw_augmentation(NEVER, draw())), x)


def test_with_probability_one_everything_changes() -> None:
    for seed in range(50):
        assert None not in draw_augmentation(STRONG, draw(seed))


def test_each_change_is_drawn_for_the_whole_batch_half_of_the_time() -> None:
    """Each on its own: 400 fair coins leave [160, 240] once in 10 000 times."""
    drawn = [draw_augmentation(WEAK, draw(seed))[1:] for seed in range(400)]
    for change in zip(*drawn, strict=True):
        assert 160 < sum(numbers is not None for numbers in change) < 240
        assert all(len(numbers) == 4 for numbers in change if numbers is not None)
    assert len({tuple(numbers is None for numbers in row) for row in drawn}) == 8


def test_the_same_generator_gives_the_same_augmentation() -> None:
    x = images()
    one, again = (augment(x, draw_augmentation(STRONG, draw(3))) for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, augment(x, draw_augmentation(STRONG, draw(4))))


def test_a_policy_takes_as_many_draws_as_any_other() -> None:
    """So that a weight of 0 or another policy moves nothing that is drawn later."""
    after = []
    for policy in (NEVER, WEAK, STRONG):
        here = draw()
        draw_augmentation(policy, here)
        after.append(torch.rand(1, generator=here.generator).item())
    assert len(set(after)) == 1


def test_two_ranks_augment_as_one() -> None:
    x = images()
    whole = augment(x, draw_augmentation(STRONG, draw()))
    parts = [
        augment(x.chunk(2)[rank], draw_augmentation(STRONG, draw(rank=rank, ranks=2)))
        for rank in range(2)
    ]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("policy", [WEAK, STRONG])
def test_gradients_pass(policy: Policy) -> None:
    """Against finite differences."""
    x = images(2, 6, torch.float64).requires_grad_()
    for seed in range(5):
        assert torch.autograd.gradcheck(
            partial(augment, augmentation=draw_augmentation(policy, draw(seed, 2))), (x,)
        )


def test_colour_in_the_middle_of_its_ranges_is_the_identity() -> None:
    x = images()
    middle = only(colour=torch.full((4, 3), 0.5))
    torch.testing.assert_close(augment(x, middle), x)


def test_brightness_adds_up_to_a_half() -> None:
    x = images()
    for number, added in ((0.0, -0.5), (0.75, 0.25), (1.0, 0.5)):
        changed = augment(x, only(colour=torch.tensor([[number, 0.5, 0.5]]).expand(4, 3)))
        torch.testing.assert_close(changed, x + added)


def test_saturation_goes_from_grey_to_twice_the_colour() -> None:
    x = images()
    grey = x.mean(1, keepdim=True)
    for number, factor in ((0.0, 0.0), (0.25, 0.5), (1.0, 2.0)):
        changed = augment(x, only(colour=torch.tensor([[0.5, number, 0.5]]).expand(4, 3)))
        torch.testing.assert_close(changed, grey + factor * (x - grey))


def test_contrast_scales_deviations_by_a_half_to_one_and_a_half() -> None:
    x = images()
    for number, factor in ((0.0, 0.5), (1.0, 1.5)):
        changed = augment(x, only(colour=torch.tensor([[0.5, 0.5, number]]).expand(4, 3)))
        torch.testing.assert_close(changed.std((1, 2, 3)), factor * x.std((1, 2, 3)))
        torch.testing.assert_close(changed.mean((1, 2, 3)), x.mean((1, 2, 3)))


def test_translation_moves_down_and_right_and_fills_with_zero() -> None:
    """At 16 pixels an eighth is 2: five shifts, -2 to 2, equally likely."""
    x = images(5)
    numbers = torch.tensor([[0.0, 0.5], [0.3, 0.5], [0.5, 0.5], [0.7, 0.5], [0.99, 0.0]])
    moved = augment(x, only(shift=numbers))
    assert torch.equal(moved[0, :, :14], x[0, :, 2:])
    assert not moved[0, :, 14:].any()
    assert torch.equal(moved[1, :, :15], x[1, :, 1:])
    assert torch.equal(moved[2], x[2])
    assert torch.equal(moved[3, :, 1:], x[3, :, :15])
    assert torch.equal(moved[4, :, 2:, :14], x[4, :, :14, 2:])
    assert not moved[4, :, :2].any()
    assert not moved[4, :, :, 14:].any()


@pytest.mark.parametrize(("share", "size"), [(0.2, 3), (0.5, 8)])
def test_cutout_blanks_a_square_of_its_share(share: float, size: int) -> None:
    """In the middle in full, in a corner a part of it; all channels alike, the rest untouched."""
    x = images(2) + 3  # nowhere 0
    cut = augment(x, only(Policy(1.0, 0.125, share), hole=torch.tensor([[0.5, 0.5], [0.0, 0.0]])))
    blank = cut == 0
    assert blank.sum((2, 3))[0].tolist() == [size**2] * 3
    assert blank.sum((2, 3))[1].tolist() == [(size - size // 2) ** 2] * 3
    assert torch.equal(cut[~blank], x[~blank])
    first = 8 - size // 2
    assert blank[0, 0, first : first + size, first : first + size].all()
