"""Where the channels of latents are: from anyone's layout to vectors."""

import torch
from numpy import ndarray
from torch import Tensor


def as_latents(latents: Tensor | ndarray) -> Tensor:
    """Latents as a tensor of fractions, where they are; arrays are on the CPU, whatever the default device is."""
    found = latents if isinstance(latents, Tensor) else torch.from_numpy(latents)
    whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    return found.float() if whole else found


def channels_last(latents: Tensor, dim: int, channel_dim: int | None = None) -> Tensor:
    """Latents of any layout as `[..., dim]`, a view where that can be.

    Args:
        latents: `[..., d]`, or with the channels on another axis, as `[b, d, h, w]`.
        dim: Channels that are expected.
        channel_dim: The axis of the channels; by default the last, if no other could be meant.

    Raises:
        ValueError: No numbers with a fraction, no such axis, another number of channels, or a layout that could be read
            in two ways.
    """
    shape = tuple(latents.shape)
    if not latents.is_floating_point():
        raise ValueError(f"latents must be floating-point numbers, found {latents.dtype}")
    if channel_dim is not None:
        if not -len(shape) <= channel_dim < len(shape):
            raise ValueError(f"channel_dim {channel_dim} is no axis of latents {list(shape)}")
        if shape[channel_dim] != dim:
            raise ValueError(
                f"latents {list(shape)} have {shape[channel_dim]} channels on axis {channel_dim} (channel_dim), this "
                f"flow prior models {dim}; {_advice(shape, dim)}"
            )
        return latents.movedim(channel_dim, -1)
    if not shape or shape[-1] != dim:
        found = f"{shape[-1]} channels" if shape else "no axis"
        raise ValueError(
            f"latents have {found}, this flow prior models {dim}; {_advice(shape, dim)}"
        )
    others = [axis for axis in range(1, len(shape) - 1) if shape[axis] == dim]
    if others:
        raise ValueError(
            f"latents {list(shape)} have {dim} entries on the last axis and on axis {others[0]}; say which holds the "
            f"channels: channel_dim=-1 or channel_dim={others[0]}"
        )
    return latents


def tokens(latents: Tensor, dim: int, channel_dim: int | None = None) -> Tensor:
    """Latents of any layout as `[b, n, dim]`: the vectors of each image; `[b, dim]` is one for each.

    Raises:
        ValueError: As `channels_last`; there are none; or the channels are on the axis of the images.
    """
    if latents.ndim < 2:
        raise ValueError(
            f"latents must be [b, {dim}], [b, n, {dim}] or images of vectors, found {list(latents.shape)}"
        )
    if channel_dim is not None and channel_dim % latents.ndim == 0:
        raise ValueError("channel_dim 0 is the axis of the images; channels are on another")
    last = channels_last(latents, dim, channel_dim)
    check_not_empty(last)
    return last.reshape(last.shape[0], -1, dim)


def check_not_empty(latents: Tensor) -> None:
    """Whether there is anything to take a mean of.

    Raises:
        ValueError: There is not.
    """
    if not latents.numel():
        raise ValueError("there are no latents to align: a leading axis is empty")


def _advice(shape: tuple[int, ...], dim: int) -> str:
    axes = [axis for axis in range(1, len(shape)) if shape[axis] == dim]
    if axes:
        return f"axis {axes[0]} has as many: say channel_dim={axes[0]}"
    return "give the autoencoder as many, fit a prior with `dim` to match, or name the axis by channel_dim"
