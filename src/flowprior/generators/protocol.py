"""What a generator is to the stages: it learns latents of classes and draws them."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

GuidanceSchedule = Literal["linear", "constant"]


class LatentShape(NamedTuple):
    """Sizes of the latents that a generator learns and draws.

    Attributes:
        num_tokens: Tokens n of an image.
        dim: Channels d of a token.
        num_classes: Classes; labels are 0 .. num_classes - 1, and num_classes stands for "no class".
    """

    num_tokens: int
    dim: int
    num_classes: int


@runtime_checkable
class Batch(Protocol):
    """All that a training step draws, in the order of the generator's `forward`."""

    def shared(self, share: Callable[[Tensor, int], Tensor]) -> "Batch":
        """This rank's part: `share(tensor, dim)` takes it from a batch."""
        ...

    def __iter__(self) -> Any: ...


@runtime_checkable
class Generator(Protocol):
    """A module whose `forward(*batch)` is its training loss; see `flowprior.mar.model.MAR`.

    Latents are normalised: mean of each channel removed, divided by one standard deviation.

    Attributes:
        config: Sizes, as JSON has them, that `from_config` builds it from.
    """

    config: dict[str, Any]

    @classmethod
    def build(cls, latents: LatentShape, settings: Any, **options: Any) -> "Generator":
        """A generator for these latents; `settings` is the section `train_mar`, `options` that of `generator`."""
        ...

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Generator":
        """Build an untrained generator of the same sizes, for weights to be loaded into."""
        ...

    def undecayed(self, decay: Any) -> tuple[str, ...]:
        """Names of parameters or submodules without weight decay; see `flowprior.core.optim.adamw`."""
        ...

    def draw_batch(
        self,
        tokens: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        num_draws: int | None = None,
    ) -> Batch:
        """Draw what a training step learns from: latents [b, n, d], labels [b], and all that is drawn but dropout."""
        ...

    def ready_to_sample(
        self, precision: Literal["fp32", "bf16"], compile: bool = False
    ) -> "Generator":
        """Prepare a trained generator for fast sampling, in place: its precision, and torch.compile where asked for."""
        ...

    def sample(
        self,
        labels: Tensor,
        generator: torch.Generator,
        *,
        num_iterations: int,
        head_steps: int,
        final_head_steps: int | None,
        solver: Any,
        churn: float | int,
        guidance_scale: float,
        guidance_schedule: GuidanceSchedule,
        guidance_interval: tuple[float | int, float | int],
        temperature: float | int,
    ) -> Tensor:
        """Latents [b, n, d] of labels [b]; what does not apply to a generator is ignored by it."""
        ...
