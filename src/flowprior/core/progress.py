"""How far something is, for a person who waits: rate and time left, on standard error."""

import sys
import time


class Progress:
    """A line that is written anew in place, or on what is no terminal a line at every tenth of the way.

    Args:
        what: Is going on.
        total: Steps.
        shown: Whether to say anything; by default where standard error is a terminal.
    """

    def __init__(self, what: str, total: int, shown: bool | None = None) -> None:
        self._what = what
        self._total = total
        self._terminal = sys.stderr.isatty()
        self._shown = self._terminal if shown is None else shown
        self._began = self._said = time.monotonic()
        self._tenth = 0
        self._note = ""

    def at(self, step: int, note: str = "") -> None:
        """So many steps are done.

        Args:
            step: Counted from 1.
            note: What to say beside; stays until there is another.
        """
        if not self._shown:
            return
        self._note = note or self._note
        now = time.monotonic()
        tenth = 10 * step // self._total
        due = now - self._said > 0.2 if self._terminal else tenth > self._tenth
        if not due and step < self._total:
            return
        self._said, self._tenth = now, tenth
        rate = step / max(now - self._began, 1e-9)
        left = (self._total - step) / rate
        line = f"{self._what}: {step}/{self._total}  {rate:.3g} steps/s  {left:.0f} s left  {self._note}"
        end = "" if self._terminal else "\n"
        print(("\r\033[K" if self._terminal else "") + line, end=end, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line as it is."""
        if self._shown and self._terminal:
            print(file=sys.stderr)


def tell(what: str, shown: bool | None = None) -> None:
    """Say something to who waits; by default where standard error is a terminal."""
    if sys.stderr.isatty() if shown is None else shown:
        print(what, file=sys.stderr, flush=True)
