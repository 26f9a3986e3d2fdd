"""Ahead: prefetches the next batch in a thread while the present one is used."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

from flowprior.training.session import Session

T = TypeVar("T")


class Ahead(Generic[T]):
    """What a step begins with, made while the step before runs.

        ahead = Ahead(session, load)
        for step in session.steps():
            for _ in session.parts():
                batch, draw = ahead(step)

    Args:
        session: Whose steps and parts they are.
        make: Gives a batch, and may draw from the step's generator first of all.
        threaded: False makes each batch when it is asked for: where that is next to no work, a
            thread costs more, since its tensors bring threads of their own that wait for one another.
    """

    def __init__(
        self, session: Session, make: Callable[[torch.Generator], T], threaded: bool = True
    ) -> None:
        self._session = session
        self._make = make
        self._threaded = threaded
        self._thread = ThreadPoolExecutor(1, "ahead")
        self._next: tuple[tuple[int, int], Future[tuple[T, torch.Generator]]] | None = None

    def __call__(self, step: int) -> tuple[T, torch.Generator]:
        """The batch of this step's present part, and the step's generator as `make` left it.

        Raises:
            Exception: Whatever `make` raised.
        """
        if not self._threaded:
            draw = self._session.generator("step", step)
            return self._make(draw), draw
        plan, now = self._session.plan, (step, self._session.part)
        waiting = self._next
        future = waiting[1] if waiting and waiting[0] == now else self._start(now)
        batch = future.result()
        then = (step, now[1] + 1) if now[1] + 1 < plan.accumulate else (step + 1, 0)
        self._next = (then, self._start(then)) if then[0] < plan.num_steps else None
        return batch

    def _start(self, key: tuple[int, int]) -> "Future[tuple[T, torch.Generator]]":
        draw = self._session.generator("step", key[0], part=key[1])
        return self._thread.submit(lambda: (self._make(draw), draw))
