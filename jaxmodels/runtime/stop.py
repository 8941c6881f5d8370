"""Stopping in time: SIGTERM, Ctrl-C and the end of the granted hours."""

import signal
import time
from types import FrameType, TracebackType


class Stopped(BaseException):
    """Raised by `Stop.check`. Like KeyboardInterrupt no error: `except Exception` lets it pass."""


class Stop:
    """Inside its `with` block, signals set `reason` instead of ending the process.

    A second Ctrl-C interrupts at once. The loop asks `due` between steps and during evaluation,
    the start calls `check` between its parts; Python runs no handler inside a compilation, so a
    signal that comes then is seen right after. The handler itself raises nothing, because
    libraries that it interrupts while they are imported turn what is raised into errors of
    their own.

    Args:
        deadline: when the time budget ends, by `time.monotonic()`; None for no limit.
    """

    def __init__(self, deadline: float | None = None):
        self.reason: str | None = None
        """None, "SIGTERM", "interrupted" or "time is up"."""
        self.deadline = deadline
        self.began = time.monotonic()
        """When the call began, by `time.monotonic()`; a notebook may be hours older."""
        self._before: dict[int, object] = {}

    def due(self, reserve: float = 0.0) -> bool:
        """Whether to stop now; `reserve` seconds of the budget are kept for the last save."""
        late = self.deadline is not None and time.monotonic() + reserve >= self.deadline
        if late and self.reason is None:
            self.reason = "time is up"
        return self.reason is not None

    def check(self, *_: object) -> None:
        """Raises `Stopped` when it is time to; takes and ignores what a progress callback gets."""
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
