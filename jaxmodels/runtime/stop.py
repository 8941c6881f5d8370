"""Stopping in time: SIGTERM, Ctrl-C and the end of the granted hours."""

import signal
import time
from types import FrameType, TracebackType


class Stop:
    """Inside its `with` block, signals set `reason` instead of ending the process.

    A second Ctrl-C interrupts at once. The loop asks `due` between steps, during evaluation
    and while it waits for data; Python runs no handler inside a compilation, so a signal
    that comes then is seen right after.

    Args:
        deadline: when the time budget ends, by `time.monotonic()`; None for no limit.
    """

    def __init__(self, deadline: float | None = None):
        self.reason: str | None = None
        """None, "SIGTERM", "interrupted" or "time is up"."""
        self._deadline = deadline
        self._before: dict[int, object] = {}

    def due(self, reserve: float = 0.0) -> bool:
        """Whether to stop now; `reserve` seconds of the budget are kept for the last save."""
        late = self._deadline is not None and time.monotonic() + reserve >= self._deadline
        if late and self.reason is None:
            self.reason = "time is up"
        return self.reason is not None

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
