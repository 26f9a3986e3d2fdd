"""PSNR, SSIM and bytes of reconstructions in [-1, 1]."""

import math
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from flowprior.core import rng
from flowprior.evaluation.reconstruction import psnr_db, reconstruction_metrics, ssim
from flowprior.images.digits import Digits
from flowprior.images.pixels import from_uint8, to_uint8

PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)


def images(*shape: int, tag: str = "x") -> Tensor:
    """Fixed numbers, uniform in [-1, 1]."""
    return 2 * torch.rand(*shape, generator=rng.generator(0, tag)) - 1


# --- psnr -------------------------------------------------------------------------------------------


@PROPERTY
@given(error=st.floats(1e-3, 1.0))
def test_the_psnr_of_a_constant_error_has_its_closed_form(error: float) -> None:
    """20 log10(2 / error) dB: the range of the data is 2."""
    black = torch.full((2, 3, 4, 4), -1.0)
    found = psnr_db(black + error, black)
    assert found.dtype == torch.float64
    # -1 + error is rounded to float32, by up to 6e-8 of an error of at least 1e-3.
    assert found.tolist() == pytest.approx([20 * math.log10(2 / error)] * 2, abs=1e-3)


def test_black_for_white_is_zero_decibels() -> None:
    """The worst that a clamped image can be."""
    black = torch.full((1, 1, 4, 4), -1.0)
    assert psnr_db(-black, black).item() == 0


def test_psnr_is_that_of_scikit_image_for_each_image_by_itself() -> None:
    """One value per image; a batch is not one big image."""
    original, restored = images(5, 3, 8, 8), images(5, 3, 8, 8, tag="y")
    restored[1] = original[1] + 0.01 * restored[1].clamp(-1, 1)
    exact = [
        peak_signal_noise_ratio(a.double().numpy(), b.double().numpy(), data_range=2)
        for a, b in zip(original, restored.clamp(-1, 1), strict=True)
    ]
    # The difference is taken in float32: 1e-7 of an error of 1e-2.
    assert psnr_db(restored, original).tolist() == pytest.approx(exact, abs=1e-3)


def test_reconstructions_are_clamped_before_they_are_compared() -> None:
    """What no screen shows does not count: beyond +-1 is +-1."""
    original = images(2, 1, 8, 8).sign()
    assert psnr_db(7 * original, original).tolist() == [120 + 10 * math.log10(4)] * 2
    half = 0.5 * original
    assert torch.equal(psnr_db(9 * original, half), psnr_db(original, half))


def test_a_perfect_reconstruction_has_a_large_and_finite_psnr() -> None:
    """126 dB, so that the mean over images stays a number."""
    original = images(2, 1, 8, 8)
    assert psnr_db(original, original).tolist() == [10 * math.log10(4e12)] * 2


def test_halving_an_error_gains_six_decibels() -> None:
    """20 log10 2, whatever the image."""
    original, noise = 0.5 * images(3, 1, 8, 8), 0.2 * images(3, 1, 8, 8, tag="noise")
    gained = psnr_db(original + noise / 2, original) - psnr_db(original + noise, original)
    assert gained.tolist() == pytest.approx([20 * math.log10(2)] * 3, abs=1e-4)


# --- ssim -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_the_ssim_of_an_image_with_itself_is_one(channels: int) -> None:
    """For each of a batch, colour or not."""
    original = images(3, channels, 8, 8)
    assert ssim(original, original).tolist() == pytest.approx([1.0] * 3, abs=1e-12)


def test_ssim_is_that_of_scikit_image_with_the_range_given() -> None:
    """Range 2, window 7, channels averaged; also where the reconstruction has to be clamped."""
    original, restored = images(3, 3, 12, 12), 1.5 * images(3, 3, 12, 12, tag="y")
    exact = [
        np.mean(
            [
                structural_similarity(x.numpy(), y.numpy(), win_size=7, data_range=2.0)
                for x, y in zip(a.double(), b.double(), strict=True)
            ]
        )
        for a, b in zip(original, restored.clamp(-1, 1), strict=True)
    ]
    found = ssim(restored, original)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(exact, abs=1e-12)


def test_the_ssim_of_constant_images_has_its_closed_form() -> None:
    """(2 a b + c) / (a^2 + b^2 + c) with c = (0.01 * 2)^2: only the luminance term is left."""
    a, b, c = 0.5, 0.25, (0.01 * 2) ** 2
    found = ssim(torch.full((1, 1, 8, 8), a), torch.full((1, 1, 8, 8), b))
    assert found.item() == pytest.approx((2 * a * b + c) / (a**2 + b**2 + c), rel=1e-9)


def test_ssim_falls_with_noise_and_is_symmetric_within_the_range() -> None:
    """Monotone in the level of the noise; neither side is the reference."""
    original, noise = 0.5 * images(1, 1, 16, 16), 0.5 * images(1, 1, 16, 16, tag="noise")
    values = [ssim(original + level * noise, original).item() for level in (0.0, 0.1, 0.5, 1.0)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 4
    assert ssim(original, original + noise).item() == pytest.approx(values[-1], abs=1e-12)


# --- of a set of images -------------------------------------------------------------------------------


class Counting:
    """A judge that counts, and keeps what it was shown."""

    facts: ClassVar[dict[str, str | int | None]] = {}

    def judge(
        self, pieces: Iterable[Tensor], labels: Tensor | None = None
    ) -> dict[str, float | None]:
        self.seen = torch.cat(list(pieces))
        assert labels is None
        return {"count": float(len(self.seen))}


def test_all_held_out_images_are_reconstructed_once_and_judged_in_bytes() -> None:
    held_out, judge, asked = Digits("validation", 0), Counting(), []

    def restore(images: Tensor) -> Tensor:
        asked.append(len(images))
        return images * 0.9

    found = reconstruction_metrics(restore, held_out, judge, 100, as_bytes=False)
    everything = held_out.images(range(len(held_out)))
    assert asked == [100, 100, 100, 59]
    assert found["rcount"] == 359
    assert torch.equal(judge.seen, to_uint8(everything * 0.9))
    assert found["psnr_db"] == pytest.approx(float(psnr_db(everything * 0.9, everything).mean()))
    assert found["ssim"] == pytest.approx(float(ssim(everything * 0.9, everything).mean()))
    assert found["lpips"] is None


def test_as_bytes_all_figures_are_of_the_rounded_picture() -> None:
    """An error below half a level is none there."""
    held_out = Digits("validation", 0)

    def nearly(images: Tensor) -> Tensor:
        return from_uint8(to_uint8(images)) + 0.3 / 127.5

    exact, rounded = (
        reconstruction_metrics(nearly, held_out, Counting(), 200, as_bytes=flag)
        for flag in (False, True)
    )
    everything = held_out.images(range(len(held_out)))
    of_bytes = psnr_db(from_uint8(to_uint8(everything)), everything).mean()
    assert rounded["psnr_db"] == pytest.approx(float(of_bytes))
    assert rounded["psnr_db"] != exact["psnr_db"]
