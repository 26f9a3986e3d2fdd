"""The digits: their range and shape, their split."""

import pytest
import torch
from sklearn.datasets import load_digits

from flowprior.images.digits import Digits, read_digits
from flowprior.images.opening import open_images
from flowprior.images.sets import SPLITS

from .sources import open_both


def test_digits_are_one_channel_of_eight_by_eight_in_minus_one_to_one() -> None:
    """float32, and both ends of the range are reached."""
    for digits in open_both("digits", None).values():
        images = digits.images(range(len(digits)))
        assert images.shape == (len(digits), 1, 8, 8)
        assert images.dtype == torch.float32
        assert (images.min(), images.max()) == (-1, 1)
        assert digits.labels.dtype == torch.int64
        assert digits.num_classes == 10


def test_digits_are_those_of_scikit_learn_each_in_one_split() -> None:
    """1 797 scans in all, pixels 0 ... 16 mapped to -1 ... 1, each with its label."""
    pixels, labels = load_digits(return_X_y=True)
    expected = sorted((tuple(p / 8 - 1), int(y)) for p, y in zip(pixels, labels, strict=True))
    found = []
    for digits in open_both("digits", None).values():
        flat = digits.images(range(len(digits))).flatten(1).double()
        found += [(tuple(p.tolist()), int(y)) for p, y in zip(flat, digits.labels, strict=True)]
    assert sorted(found) == expected


def test_without_scikit_learns_file_they_come_from_its_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another release may keep them elsewhere."""
    pixels, labels = read_digits()
    monkeypatch.setattr("flowprior.images.digits.find_spec", lambda _: None)
    for found, expected in zip(read_digits(), (pixels, labels), strict=True):
        assert found.dtype == expected.dtype
        assert (found == expected).all()


def test_a_fifth_of_every_digit_is_held_out() -> None:
    """The class frequencies of the splits are those of the whole, to the rounding."""
    splits = open_both("digits", None)
    total = torch.from_numpy(load_digits(return_X_y=True)[1]).bincount()
    assert splits["validation"].labels.bincount().tolist() == [
        round(n * 0.2) for n in total.tolist()
    ]


def test_the_split_of_the_digits_never_changes() -> None:
    """Golden values, first computed with torch 2.15.0: the first held-out images show these digits."""
    digits = Digits("validation", 0)
    assert len(digits) == 359
    assert digits.labels[:12].tolist() == [3, 2, 3, 5, 9, 4, 7, 2, 2, 3, 6, 4]


def test_digits_have_one_size() -> None:
    """Any other is an error that says so."""
    with pytest.raises(ValueError, match=r"digits are 8 x 8, found .* 16"):
        open_images("digits", "train", split_seed=0, size=16)


def test_the_digest_of_the_digits_changes_with_split_and_split_seed() -> None:
    """And is the same each time."""
    one, again, other = (open_both("digits", None, seed) for seed in (0, 0, 1))
    assert [one[s].digest for s in SPLITS] == [again[s].digest for s in SPLITS]
    assert len({images.digest for images in [*one.values(), *other.values()]}) == 4
