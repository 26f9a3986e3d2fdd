"""PSNR, SSIM and bytes of reconstructions in [-1, 1]."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from flowprior.core import rng
from flowprior.evaluation.reconstruction import psnr_db, ssim
from flowprior.images.pixels import to_uint8

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


# --- bytes ------------------------------------------------------------------------------------------


def test_every_byte_survives_the_way_there_and_back() -> None:
    """The level k stands for k / 127.5 - 1, as `data.images` decodes it."""
    levels = torch.arange(256).view(1, 1, 16, 16)
    found = to_uint8(levels.float() / 127.5 - 1)
    assert found.dtype == torch.uint8
    assert torch.equal(found, levels.to(torch.uint8))


@PROPERTY
@given(value=st.floats(-1, 1, width=32))
def test_values_are_rounded_to_the_nearest_level(value: float) -> None:
    """At most half a level away, not cut off below."""
    found = to_uint8(torch.full((1, 1, 1, 1), value)).item()
    # (x + 1) * 127.5 in float32 is off by at most 2e-5 levels.
    assert abs(found - (value + 1) * 127.5) <= 0.5 + 1e-4


@pytest.mark.parametrize(("value", "byte"), [(-7.0, 0), (-1.0, 0), (1.0, 255), (7.0, 255)])
def test_values_beyond_the_range_are_clamped(value: float, byte: int) -> None:
    """They do not wrap around."""
    assert to_uint8(torch.full((1, 1, 1, 1), value)).item() == byte
