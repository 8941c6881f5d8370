"""The progress bar of a run on a terminal; plain lines elsewhere."""

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
    """Shows step, loss, speed and time left on standard error.

    Args:
        start: steps done before this process.
        steps: steps of the run.
        every: seconds between plain lines without a terminal.
        shown: whether to show anything.
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
        """Shows a finished step.

        Args:
            step: steps done.
            loss: its loss.
            speeds: unit → number a second, and `mfu`; empty for a step that included compilation.
            left: seconds left.
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
        """Prints a line without disturbing the bar."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            say(text)


def batch_counts(local: dict[str, Any], rows: int) -> dict[str, int]:
    """The number of tokens, and of images if any, in a batch.

    Args:
        local: this process's rows. With a `mask` its real tokens count, otherwise the targets;
            other processes' rows are assumed to be similar.
        rows: rows of all processes.
    """
    tokens, mask = local["tokens"], local.get("mask")
    count = tokens.shape[0] * (tokens.shape[1] - 1) if mask is None else int(mask.sum())
    images = {"images": rows} if "images" in local else {}
    return {"tokens": count * rows // len(tokens), **images}
