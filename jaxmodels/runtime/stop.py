"""Stopping in time: SIGTERM, Ctrl-C and the end of the granted hours.

A signal sets a flag and raises nothing: NumPy, for one, turns an exception of a handler during its
import into an ImportError. The start polls between its parts, and through the progress callback of
the data preparation; the loop polls between steps and during evaluation. Python runs no handler
inside a compilation, so a signal that arrives then is seen right after.
"""

import signal
import time
from types import FrameType, TracebackType


class Stopped(BaseException):
    """Raised by `Stop.check`. Like KeyboardInterrupt it is not an Exception."""


class Stop:
    """Inside its `with` block, signals set `reason` instead of ending the process.

    A second Ctrl-C interrupts at once.

    Args:
        deadline: when the time budget ends, by `time.monotonic()`; None for no limit.
    """

    def __init__(self, deadline: float | None = None):
        self.reason: str | None = None
        """None, "SIGTERM", "interrupted" or "time is up"."""
        self.deadline = deadline
        self.began = time.monotonic()
        """When the call began, by `time.monotonic()`; a notebook's process may be hours older."""
        self._before: dict[int, object] = {}

    def due(self, reserve: float = 0.0) -> bool:
        """Whether to stop now; `reserve` seconds of the budget are kept for the last save."""
        late = self.deadline is not None and time.monotonic() + reserve >= self.deadline
        if late and self.reason is None:
            self.reason = "time is up"
        return self.reason is not None

    def check(self, *_: object) -> None:
        """Raises `Stopped` when it is time to stop; ignores its arguments, so that it can serve as
        a progress callback."""
        if self.due():
            raise Stopped

    def __enter__(self) -> "Stop":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason == "interrupted":
            raise KeyboardInterrupt
        self.reason = "SIGTERM" if number == signal.SIGTERM else "interrupted"
