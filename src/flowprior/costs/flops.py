"""What a training step costs before it is run: floating-point operations and memory, on the meta device.

Nothing is computed and nothing allocated: modules and tensors of the meta device have shapes only.
Operations are those of torch's own counter (matrix products, convolutions, attention; a
multiplication and an addition are two); what is left out, elementwise arithmetic, costs time but
hardly any operations.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from flowprior.mar.model import MAR
from flowprior.mar.schedules import guided_spans, head_schedule, mask_schedule

Precision = Literal["fp32", "bf16"]
META = torch.device("meta")
LEARNED_BYTES = 20
"""Of a learned parameter: weight, gradient, two moments of Adam, moving average; float32 each."""
CHECKPOINT_BYTES = 16
"""On disk: weight, two moments, moving average."""
FROZEN_BYTES = 4
COPY_BYTES = 2
"""Of any parameter under autocast: the copy in bf16 that the backward pass asks for."""


class Cost(NamedTuple):
    """Of one step.

    Attributes:
        flops: Operations, forward and backward.
        kept_bytes: The most that is kept at one time for a backward pass; weights and their copies in
            bf16 are not counted, nor what a checkpointed block computes again.
    """

    flops: int
    kept_bytes: int


class Hardware(NamedTuple):
    """One accelerator.

    Attributes:
        bf16_flops: Dense peak per second, with bf16 operands.
        fp32_flops: With float32 operands; without TF32, which nothing here turns on.
        memory_bytes: That can be used.
        utilisation: Share of the peak that is reached.
    """

    bf16_flops: float
    fp32_flops: float
    memory_bytes: float
    utilisation: float

    def hours(self, flops: float | int, precision: Precision) -> float:
        """Of one accelerator, for so many operations."""
        peak = self.bf16_flops if precision == "bf16" else self.fp32_flops
        return flops / (peak * self.utilisation) / 3600


H100 = Hardware(bf16_flops=989e12, fp32_flops=67e12, memory_bytes=78 * 2**30, utilisation=0.4)
"""NVIDIA H100 SXM, by its data sheet; a share of 0.4 is what transformers of this size reach."""


def measure(step: Callable[[], Tensor | None], precision: Precision = "fp32") -> Cost:
    """The cost of a step that runs on meta tensors.

    Args:
        step: Runs forward and returns a loss, of which the backward pass is counted as well, or
            None where there is none. It may itself take backward passes on the way.
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


def num_parameters(modules: Iterable[nn.Module]) -> int:
    """In all of them; one that several share counts once."""
    return sum(p.numel() for p in {p for module in modules for p in module.parameters()})


def state_bytes(
    learned: Iterable[nn.Module], frozen: Iterable[nn.Module], precision: Precision = "fp32"
) -> int:
    """Memory of weights, gradients, moments and averages, and of the weights' copies in bf16."""
    copies = COPY_BYTES if precision == "bf16" else 0
    of_learned, of_frozen = LEARNED_BYTES + copies, FROZEN_BYTES + copies
    return of_learned * num_parameters(learned) + of_frozen * num_parameters(frozen)


def sampling_flops(
    mar: MAR,
    *,
    num_iterations: int,
    head_steps: int,
    final_head_steps: int | None = None,
    solver: str = "euler",
    guided: bool = False,
    guidance_interval: tuple[float | int, float | int] = (0.0, 1.0),
) -> int:
    """Operations of `MAR.sample` for one sequence: every pass of the transformers, every step of the head.

    A pass is a quadratic in the number of visible tokens, counted at three of them; of the head,
    which takes every vector by itself, one evaluation is counted. The embedding of a time, which
    all sequences of a batch share, is left out.

    Args:
        mar: On the meta device.
        num_iterations: As of `MAR.sample`, and so the others.
        head_steps: In the first iteration.
        final_head_steps: In the last.
        solver: `heun` evaluates the head twice a step.
        guided: Whether a guidance scale other than 1 is used.
        guidance_interval: Times at which it is.
    """
    n, dim, width = mar.shape.num_tokens, mar.shape.dim, mar.shape.width
    tokens = torch.empty(1, n, dim, device=META)
    labels = torch.zeros(1, dtype=torch.long, device=META)
    orders = torch.zeros(1, n, dtype=torch.long, device=META)

    def transformers(masked: int) -> int:
        def once() -> None:
            mar.conditions(tokens, labels, orders, masked)

        return measure(once).flops

    def head(vectors: int) -> int:
        def once() -> None:
            x, c = (torch.empty(1, vectors, size, device=META) for size in (dim, width))
            mar.head(x, torch.empty(1, 1, device=META), c)

        return measure(once).flops

    with torch.no_grad():
        counted = {masked: transformers(masked) for masked in {0, n // 2, n}}
        per_vector = (head(2) - head(1)) * (2 if solver == "heun" else 1)
    total, masked = 0.0, n
    steps_of = head_schedule(head_steps, final_head_steps, num_iterations)
    for left, steps in zip(mask_schedule(n, num_iterations), steps_of, strict=True):
        spans = guided_spans(steps, guidance_interval) if guided else []
        doubled = sum(span.last - span.first for span in spans if span.guided)
        total += _through(counted, masked) * (2 if doubled else 1)
        total += per_vector * (steps + doubled) * (masked - left)
        masked = left
    return round(total)


def _through(points: Mapping[int, int], x: int) -> float:
    """The polynomial through the points, by Lagrange."""
    return sum(
        y * math.prod((x - other) / (at - other) for other in points if other != at)
        for at, y in points.items()
    )


class _AsOnGPU(TorchFunctionMode):
    """Attention that keeps no matrix of weights, and the casts of autocast, for meta tensors.

    On the meta device torch writes attention out, and has no autocast.
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
        """In the mode, in backward passes as well, where checkpointed blocks run forward again.

        Torch leaves a mode for as long as a function runs that the mode was asked about, such as
        `Tensor.backward`. And `torch.autocast` knows no meta tensors: here it turns the casts on and off.
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
    """Whether it is plain attention of three meta tensors [b, heads, n, channels]."""
    plain = kwargs.get("attn_mask") is None and not kwargs.get("is_causal")
    return plain and len(args) == 3 and all(x.ndim == 4 and x.device.type == "meta" for x in args)


class _Keeper:
    """What autograd keeps, by storage, and the most of it that lived at one time."""

    def __init__(self) -> None:
        self.peak = 0
        self._held: dict[int, tuple[int, int]] = {}
        self._now = 0

    def pack(self, tensor: Tensor) -> Any:
        """Count a tensor until nothing holds it any more."""
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
        """The tensor itself."""
        return held.tensor


class _Held:
    """A tensor with an end that can be seen."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
