"""The live display of a run on a terminal, and plain lines without one."""

import sys
import time
from types import TracebackType
from typing import Any

from jaxmodels.cli import say


def duration(seconds: float) -> str:
    """65 → "1:05"; 3725 → "1:02:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Shows step, loss, speed and time left, on standard error.

    Args:
        start: steps done before this process.
        steps: steps of the whole run.
        every: seconds between plain lines when there is no terminal.
        shown: whether there is a display at all.
    """

    def __init__(self, start: int, steps: int, every: float = 10.0, shown: bool = True):
        self.start, self.steps, self.every = start, steps, every
        self._bar: Any = None
        self._shown = 0.0
        if shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("", total=steps, completed=start)

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, loss: float, speeds: dict[str, float], left: float) -> None:
        """Tells that a step is done.

        Args:
            step: steps done.
            loss: its loss.
            speeds: what → how many a second, and `mfu`; empty for a step that was mostly
                compilation.
            left: seconds that remain.
        """
        shown = "  ".join(
            f"MFU {speed:.0%}" if what == "mfu" else f"{speed:,.0f} {what}/s"
            for what, speed in speeds.items()
        )
        pace = f"{shown}  {duration(left)} left" if speeds else "compiled"
        line = f"step {step}/{self.steps}  loss {loss:.4f}  {pace}"
        if self._bar:
            self._bar.update(self._task, completed=step, description=line)
        elif time.monotonic() - self._shown >= self.every:
            self._shown = time.monotonic()
            say(line)

    def say(self, text: str) -> None:
        """Prints a line without disturbing the display."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            say(text)


def batch_counts(own: dict[str, Any], rows: int) -> dict[str, int]:
    """Tokens, and images where there are any, of a batch of so many rows.

    Args:
        own: this process's rows. Of padded ones (`mask`) the real tokens count, of others the
            targets; where other processes have rows too, they are taken to be like these.
        rows: of all processes.
    """
    tokens, mask = own["tokens"], own.get("mask")
    count = tokens.shape[0] * (tokens.shape[1] - 1) if mask is None else int(mask.sum())
    images = {"images": rows} if "images" in own else {}
    return {"tokens": count * rows // len(tokens), **images}
