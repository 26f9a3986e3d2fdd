"""Where the channels of latents are."""

import pytest
import torch

from flowprior.prior.layout import channels_last, tokens


@pytest.mark.parametrize(
    ("shape", "channel_dim", "vectors", "per_image"),
    [
        ((6, 4), None, (6, 4), (6, 1, 4)),
        ((6, 5, 4), None, (6, 5, 4), (6, 5, 4)),
        ((6, 4, 5), 1, (6, 5, 4), (6, 5, 4)),
        ((6, 4, 2, 3), 1, (6, 2, 3, 4), (6, 6, 4)),
        ((6, 4, 4, 3), 1, (6, 4, 3, 4), (6, 12, 4)),
        ((6, 4, 4, 4), 1, (6, 4, 4, 4), (6, 16, 4)),
        ((6, 4, 4, 4), -1, (6, 4, 4, 4), (6, 16, 4)),
        ((4, 5, 4), None, (4, 5, 4), (4, 5, 4)),
        ((6, 4, 2, 2, 2), -4, (6, 2, 2, 2, 4), (6, 8, 4)),
    ],
)
def test_latents_of_any_layout_become_vectors(
    shape: tuple[int, ...],
    channel_dim: int | None,
    vectors: tuple[int, ...],
    per_image: tuple[int, ...],
) -> None:
    """Each vector is that of one place of one image, in the order of the places."""
    latents = torch.randn(shape)
    last = channels_last(latents, 4, channel_dim)
    assert last.shape == vectors
    assert torch.equal(last, latents.movedim(-1 if channel_dim is None else channel_dim, -1))
    found = tokens(latents, 4, channel_dim)
    assert found.shape == per_image
    assert torch.equal(found, last.reshape(per_image))


@pytest.mark.parametrize(
    ("shape", "channel_dim", "message"),
    [
        ((6, 5), None, "latents have 5 channels, this flow prior models 4; give"),
        ((6, 4, 2, 3), None, "axis 1 has as many: say channel_dim=1"),
        ((6, 4, 5), -1, r"5 channels on axis -1 \(channel_dim\).*axis 1 has as many"),
        ((6, 4, 4), None, "on the last axis and on axis 1; say which holds the channels"),
        ((6, 4, 2, 4), None, "channel_dim=-1 or channel_dim=1"),
        ((6, 4), 2, r"channel_dim 2 is no axis of latents \[6, 4\]"),
        ((), None, "latents have no axis"),
    ],
)
def test_what_cannot_be_told_is_an_error_that_names_channel_dim(
    shape: tuple[int, ...], channel_dim: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        channels_last(torch.zeros(shape), 4, channel_dim)


def test_integers_are_no_latents() -> None:
    with pytest.raises(ValueError, match=r"floating-point numbers, found torch\.int64"):
        channels_last(torch.zeros(3, 4, dtype=torch.long), 4)


@pytest.mark.parametrize(
    ("shape", "channel_dim", "message"),
    [
        ((4,), None, r"must be \[b, 4\], \[b, n, 4\]"),
        ((4, 6), 0, "axis of the images"),
        ((0, 4), None, "there are no latents to align"),
        ((3, 0, 4), None, "there are no latents to align"),
    ],
)
def test_images_without_vectors_are_an_error(
    shape: tuple[int, ...], channel_dim: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tokens(torch.zeros(shape), 4, channel_dim)
