"""Progress of a long read: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any

_SECONDS = 5.0  # between plain lines of a stage


class ProgressBar:
    """A `Progress` callback that reports on standard error."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._reported: dict[str, float] = {}

    def __enter__(self) -> "ProgressBar":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Reports that `stage` has processed `done` of `total` bytes."""
        if self._bar:
            if stage not in self._tasks:
                self._tasks[stage] = self._bar.add_task(stage, total=total)
            self._bar.update(self._tasks[stage], completed=done)
            return
        now = time.monotonic()
        if now - self._reported.setdefault(stage, now) >= _SECONDS:
            self._reported[stage] = now
            share = done / max(1, total)
            print(f"{stage}: {share:.0%} of {total / 1e6:,.1f} MB", file=sys.stderr, flush=True)
