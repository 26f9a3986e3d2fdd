"""Features of any kind as vectors: arrays, data frames, or batches that arrive one after the other."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowprior.core import rng
from flowprior.stats.moments import Moments

KEPT_VALUES = 1 << 27
"""Values of a stream that are kept, at most, drawn at random: 512 MiB."""
WAITING_VALUES = 1 << 23
"""Values that wait until a stream's sample is drawn anew."""


class Gathered(NamedTuple):
    """Features to fit to.

    Attributes:
        vectors: All that there are, or of a long stream a random sample, [n, D].
        moments: Of all that there are.
    """

    vectors: Tensor
    moments: Moments


def gathered(
    features: Any, device: torch.device | str | None, seed: int, channel_dim: int | None = None
) -> Gathered:
    """Features as float32 vectors with their moments; an iterable of batches is read once, in bounded memory.

    Raises:
        ValueError: They are no real numbers, not finite, have fewer than two axes, there are none, or it is not clear
            which axis holds the channels.
    """
    if isinstance(features, Iterable) and not _at_hand(features):
        return _of_stream(features, device, seed, channel_dim)
    vectors = feature_vectors(features, device, channel_dim)
    moments = Moments(vectors.shape[-1])
    moments.update(vectors)
    return Gathered(vectors, moments)


def feature_vectors(
    features: Any, device: torch.device | str | None = None, channel_dim: int | None = None
) -> Float[Tensor, "n D"]:
    """Features as float32 vectors, on their own device by default; what was passed is not changed.

    Args:
        features: Tensor, array (of any byte order and stride), data frame or nested lists of numbers, [..., D].
        device: Where to put them.
        channel_dim: The axis of the channels D; by default the last, if they do not look like [b, D, h, w].

    Raises:
        ValueError: They are no real numbers, have fewer than two axes, there are none, or it is not clear which axis
            holds the channels.
    """
    if isinstance(features, Tensor):
        tensor = features.detach()
        if tensor.layout != torch.strided or tensor.is_complex():
            raise ValueError("features must be a dense tensor of real numbers")
    else:
        try:
            array = np.asarray(features)
            array = array.astype(np.float64) if array.dtype == object else array
            if array.dtype.kind not in "biuf":
                raise TypeError(str(array.dtype))
        except (TypeError, ValueError) as error:
            raise ValueError(f"features must be numbers, [..., D]: {error}") from None
        tensor = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    if tensor.ndim < 2 or not tensor.numel():
        raise ValueError(f"features must be [..., D] and not empty, found {tuple(tensor.shape)}")
    tensor = _channels_last(tensor, channel_dim)
    tensor = tensor.to(device=device, dtype=torch.float32)  # of another dtype it is a copy
    tensor = tensor.clone() if tensor.is_inference() else tensor
    return tensor.reshape(-1, tensor.shape[-1])


def _channels_last(features: Tensor, channel_dim: int | None) -> Tensor:
    shape = list(features.shape)
    if channel_dim is not None:
        if not -features.ndim <= channel_dim < features.ndim:
            raise ValueError(f"channel_dim {channel_dim} is no axis of features {shape}")
        return features.movedim(channel_dim, -1)
    if features.ndim == 4 and shape[2] == shape[3] > 1 and shape[1] != shape[2]:
        raise ValueError(
            f"features {shape} look like [b, D, h, w]; say which axis holds the channels: channel_dim=1, or "
            "channel_dim=-1 for the last"
        )
    return features


def _at_hand(features: Any) -> bool:
    """Whether all are there at once."""
    if isinstance(features, list | tuple):
        batches = features and isinstance(features[0], Tensor | np.ndarray) and features[0].ndim > 1
        return not batches
    return isinstance(features, Tensor | str | bytes) or hasattr(features, "__array__")


def _of_stream(
    batches: Iterable[Any], device: torch.device | str | None, seed: int, channel_dim: int | None
) -> Gathered:
    """A uniform sample of all vectors: each gets a random key, those with the least keys stay."""
    draw = rng.generator(seed, "fit", "stream")
    moments: Moments | None = None
    kept: list[Tensor] = []
    keys: list[Tensor] = []
    waiting = 0
    for index, batch in enumerate(batches):
        if isinstance(batch, list | tuple):
            raise ValueError(
                f"batch {index} of the features is a {type(batch).__name__}; give the tensors alone, for instance "
                "FlowPrior.fit((batch[0] for batch in loader))"
            )
        vectors = feature_vectors(
            batch, channel_dim=channel_dim
        ).clone()  # the caller may fill the same memory again
        if moments is None:
            moments = Moments(vectors.shape[1])
        if vectors.shape[1] != moments.dim:
            raise ValueError(
                f"batch {index} of the features has {vectors.shape[1]} channels, those before have {moments.dim}"
            )
        moments.update(vectors)
        kept.append(vectors)
        keys.append(torch.rand(len(vectors), dtype=torch.float64, generator=draw))
        waiting += vectors.numel()
        if waiting > WAITING_VALUES:
            kept, keys = _least(kept, keys)
            waiting = 0
    if moments is None:
        raise ValueError("there are no features: the stream is empty")
    kept, _ = _least(kept, keys)
    return Gathered(kept[0].to(device) if device is not None else kept[0], moments)


def _least(kept: list[Tensor], keys: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Those vectors whose keys are least, as many as may be kept, in their order."""
    vectors, key = torch.cat(kept), torch.cat(keys)
    most = max(1, KEPT_VALUES // vectors.shape[1])
    if len(vectors) <= most:
        return [vectors], [key]
    rows = key.topk(most, largest=False).indices.sort().values
    return [vectors[rows.to(vectors.device)]], [key[rows]]
