"""What `train` does when it is one of several processes; nothing in a single one."""

import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import jaxmodels
from jaxmodels.commands.lock import locked
from jaxmodels.commands.train_options import Request
from jaxmodels.errors import MISMATCH, USAGE, Problem
from jaxmodels.runtime.multihost import processes
from jaxmodels.runtime.multihost.cluster import find
from jaxmodels.runtime.stop import Stop

T = TypeVar("T")

_SEEN_WITHIN = 60.0  # seconds; network file systems cache the contents of folders for so long


def join(request: Request, stop: Stop) -> None:
    """Joins the other processes, which must have the same settings.

    Raises:
        Problem: as `processes.start`; (usage) the options work in one process only.
    """
    options = request.options
    place = find(options.coordinator, options.processes, options.process)
    if place is not None and request.source is not None:  # reading it has started JAX
        raise Problem(
            "--init begins a run in one process only",
            where=str(options.init),
            fix="begin with --processes 1 and stop after its first checkpoint; then start all "
            "processes with the same --out, without --init",
            exit_code=USAGE,
        )
    facts = request.settings | {"version": jaxmodels.__version__, "resume": options.resume}
    processes.start(
        options.coordinator,
        options.processes,
        options.process,
        options.join_timeout,
        options.heartbeat,
        facts,
        stop,
    )
    if options.find_lr and processes.several():
        raise Problem(
            "--find-lr works in one process only",
            fix="run it on one machine, with --processes 1",
            exit_code=USAGE,
        )


def run_lock(run: Path) -> AbstractContextManager[None]:
    """The lock of the run; process 0 holds it for all."""
    return locked(run) if processes.is_primary() else nullcontext()


def refuse_unshared_folder(run: Path) -> None:
    """Refuses a run directory that the processes do not share.

    Otherwise each would prepare data and save its shard of a checkpoint where no other finds it.
    """
    if not processes.several():
        return
    mark = run / f".seen-{processes.broadcast(secrets.token_hex(8))}"
    if processes.is_primary():
        mark.touch()
    processes.all_gather()
    try:
        seen = processes.all_gather(_appears(mark))
    finally:
        if processes.is_primary():
            mark.unlink(missing_ok=True)
    if not all(seen):
        blind = [str(index) for index, sees in enumerate(seen) if not sees]
        raise Problem(
            "the processes do not share the run directory",
            where=str(run),
            why=f"process {', '.join(blind)} does not see a file that process 0 wrote there",
            fix="give an --out on a file system that all of them have mounted",
            exit_code=USAGE,
        )


def _appears(path: Path) -> bool:
    end = time.monotonic() + _SEEN_WITHIN
    while path.parent.is_dir():
        if path.name in {other.name for other in path.parent.iterdir()}:
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return False


def primary_first(make: Callable[[], T]) -> T:
    """The result of `make`, which process 0 calls first, so that the others find its files."""
    made = make() if processes.is_primary() else None
    processes.all_gather()
    return made if made is not None else make()


def refuse_other_data(data: Any) -> None:
    """Raises a Problem (mismatch) if the processes would read different tokens."""
    ours = data.identity
    theirs = processes.broadcast(ours)
    differing = [
        index for index, same in enumerate(processes.all_gather(ours == theirs)) if not same
    ]
    if differing:
        raise Problem(
            "the processes do not read the same data",
            where=data.spec,
            why=f"process {differing[0]} has other tokens than process 0",
            fix="give data that is the same for all of them",
            exit_code=MISMATCH,
        )
