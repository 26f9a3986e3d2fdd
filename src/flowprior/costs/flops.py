"""What a training step costs before it is run: floating-point operations and memory, on the meta device.

Nothing is computed and nothing is allocated: modules and tensors of the meta device have shapes only. Operations are
those of torch's own counter (matrix products, convolutions and attention; a multiplication and an addition are two).
Elementwise arithmetic is left out, which costs time but hardly any operations.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from flowprior.costs.hardware import Precision

META = torch.device("meta")
"""The device of tensors that have a shape and no numbers."""


class Cost(NamedTuple):
    """What one step costs.

    Attributes:
        flops: Operations of the forward and the backward pass.
        kept_bytes: The most that is kept at one time for a backward pass. Weights and their copies in bf16 are not
            counted, nor what a checkpointed block computes again.
    """

    flops: int
    kept_bytes: int


def measure(step: Callable[[], Tensor | None], precision: Precision = "fp32") -> Cost:
    """The cost of a step that runs on meta tensors.

    Args:
        step: Runs forward and returns a loss, whose backward pass is counted as well, or None where there is no
            loss. It may itself take backward passes on the way.
        precision: `bf16` casts as autocast does on a GPU.
    """
    keeper = _Keeper()
    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(keeper.pack, keeper.unpack),
        _AsOnGPU(precision).installed(),
    ):
        loss = step()
        if loss is not None and loss.requires_grad:
            loss.backward()
    return Cost(int(counter.get_total_flops()), keeper.peak)


class _AsOnGPU(TorchFunctionMode):
    """Gives meta tensors what a GPU has: attention that keeps no matrix of weights, and the casts of autocast.

    On the meta device torch itself writes attention out and has no autocast.
    """

    _LOW = frozenset(
        {F.linear, F.conv1d, F.conv2d, torch.conv1d, torch.conv2d}
        | {torch.matmul, torch.bmm, torch.mm, torch.addmm, torch.baddbmm, torch.einsum}
        | {Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm}
    )
    _HIGH = frozenset(
        {F.layer_norm, torch.layer_norm, F.group_norm, torch.group_norm, F.mse_loss}
        | {F.softmax, torch.softmax, F.log_softmax, torch.log_softmax}
    )

    def __init__(self, precision: Precision) -> None:
        super().__init__()
        self._bf16 = precision == "bf16"

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        low = func is F.scaled_dot_product_attention or func in self._LOW
        if self._bf16 and (low or func in self._HIGH):
            dtype = torch.bfloat16 if low else torch.float32
            args = tuple(_cast(value, dtype) for value in args)
            kwargs = {name: _cast(value, dtype) for name, value in kwargs.items()}
        if func is F.scaled_dot_product_attention and _flash_can(args, kwargs):
            dropout = kwargs.get("dropout_p", 0.0)
            return torch.ops.aten._scaled_dot_product_flash_attention(*args[:3], dropout)[0]
        return func(*args, **kwargs)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Enter the mode, for backward passes too, in which checkpointed blocks run forward again.

        Torch leaves a mode for as long as a function runs that the mode was asked about, such as `Tensor.backward`.
        And `torch.autocast` knows no meta tensors: in here it turns the casts on and off.
        """
        autograd: Any = torch.autograd
        torch_autocast, torch_engine = torch.autocast, autograd._engine_run_backward

        def autocast(
            device_type: str, dtype: Any = None, enabled: bool = True, **options: Any
        ) -> AbstractContextManager[Any]:
            if device_type != "meta":
                return torch_autocast(device_type, dtype, enabled, **options)
            return self._casting(enabled)

        def engine(*args: Any, **options: Any) -> Any:
            with self:
                return torch_engine(*args, **options)

        torch.autocast = autocast  # type: ignore[assignment, misc]
        autograd._engine_run_backward = engine
        try:
            with self:
                yield
        finally:
            torch.autocast = torch_autocast  # type: ignore[misc]
            autograd._engine_run_backward = torch_engine

    @contextmanager
    def _casting(self, on: bool) -> Iterator[None]:
        before, self._bf16 = self._bf16, on
        try:
            yield
        finally:
            self._bf16 = before


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if not (isinstance(value, Tensor) and value.is_meta and value.is_floating_point()):
        return value
    cast = value.to(dtype)
    if isinstance(value, nn.Parameter):
        cast.of_weight = True  # type: ignore[attr-defined]
    return cast


def _flash_can(args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the call is plain attention of three meta tensors [b, heads, n, channels]."""
    plain = kwargs.get("attn_mask") is None and not kwargs.get("is_causal")
    return plain and len(args) == 3 and all(x.ndim == 4 and x.device.type == "meta" for x in args)


class _Keeper:
    """Counts what autograd keeps, by storage.

    Attributes:
        peak: The most bytes that were kept at one time.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._held: dict[int, tuple[int, int]] = {}
        self._now = 0

    def pack(self, tensor: Tensor) -> Any:
        """Count a tensor's storage until nothing holds it any more."""
        whole = tensor if tensor._base is None else tensor._base
        if isinstance(whole, nn.Parameter) or hasattr(whole, "of_weight"):
            return _Held(tensor)
        held, storage = _Held(tensor), tensor.untyped_storage()
        key = storage._cdata
        times, size = self._held.get(key, (0, storage.nbytes()))
        self._held[key] = times + 1, size
        if not times:
            self._now += size
            self.peak = max(self.peak, self._now)
        weakref.finalize(held, self._release, key)
        return held

    def _release(self, key: int) -> None:
        times, size = self._held.pop(key)
        if times > 1:
            self._held[key] = times - 1, size
        else:
            self._now -= size

    @staticmethod
    def unpack(held: "_Held") -> Tensor:
        """Give a tensor back to autograd."""
        return held.tensor


class _Held:
    """Holds a tensor for autograd; when it is let go, `weakref.finalize` tells."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
