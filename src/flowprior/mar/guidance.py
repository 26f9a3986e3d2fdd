"""Classifier-free guidance of MAR's flow head."""

from torch import Tensor, nn


class GuidedHead:
    """The head's velocity with guidance; both halves of the batch in one pass."""

    def __init__(self, head: nn.Module, condition: Tensor, scale: float) -> None:
        self.head = head
        self.condition = condition
        self.scale = scale

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        with_class, without = self.head(x.repeat(2, 1, 1), t, self.condition).chunk(2)
        guided: Tensor = without + self.scale * (with_class - without)
        return guided
