"""Shows how far a conversion is: a bar in a terminal, a few plain lines elsewhere."""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bridge.core.tensors import Tensor
from jaxmodels.cli import say

SECONDS = 5.0  # seconds between two plain lines


@contextmanager
def show(total: int) -> Iterator[Callable[[Tensor], None]]:
    """A function to call after each tensor; it writes to standard error. `total` is in bytes.

    Both forms show bytes, speed, time left, the memory of the process, and the tensor.
    """
    if not sys.stderr.isatty():
        yield _plain(total)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[at]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, at="")
        yield lambda tensor: bar.update(
            task, advance=tensor.nbytes, at=f"memory {memory() / 1e6:.0f} MB  {tensor.name}"
        )


def line(done: int, total: int, seconds: float, name: str) -> str:
    """One plain line; `seconds` is the time that `done` of `total` bytes took."""
    speed = done / max(seconds, 1e-9)
    left = max(total - done, 0) / max(speed, 1e-9)
    return (
        f"{done / max(total, 1):4.0%}  {done / 1e6:,.0f} of {total / 1e6:,.0f} MB  "
        f"{speed / 1e6:,.0f} MB/s  {int(left) // 60}:{int(left) % 60:02d} left  "
        f"memory {memory() / 1e6:,.0f} MB  {name}"
    )


def memory() -> int:
    """Bytes of memory of the process now; the peak where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * resource.getpagesize()


def _plain(total: int) -> Callable[[Tensor], None]:
    done, begin = 0, time.monotonic()
    last = begin

    def tell(tensor: Tensor) -> None:
        nonlocal done, last
        done += tensor.nbytes
        now = time.monotonic()
        if now - last >= SECONDS:
            last = now
            say(line(done, total, now - begin, tensor.name))

    return tell
