"""Shows how far a conversion is: a bar in a terminal, a few plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bridge.tensors import Tensor
from jaxmodels.cli import say


@contextmanager
def show(total: int) -> Iterator[Callable[[Tensor], None]]:
    """What to call after each tensor of `total` bytes; written to standard error."""
    if not sys.stderr.isatty():
        yield _plain(total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[at]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, at="")
        yield lambda tensor: bar.update(task, advance=tensor.nbytes, at=tensor.name)


def _plain(total: int, seconds: float = 5.0) -> Callable[[Tensor], None]:
    done, last = 0, time.monotonic()

    def tell(tensor: Tensor) -> None:
        nonlocal done, last
        done += tensor.nbytes
        if time.monotonic() - last > seconds:
            last = time.monotonic()
            say(f"{done / max(total, 1):4.0%}  {tensor.name}")

    return tell
