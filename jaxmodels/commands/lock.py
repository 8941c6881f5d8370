"""The lock of a run directory: two processes never train in one.

After locking it is checked that the file is still in place: a failed start removes the folder that
it made, and another process may have opened the lock file just before.
"""

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from jaxmodels.errors import EXISTS, Problem
from jaxmodels.files import make_folder

_LOCK = ".lock"


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Locks the run directory. A folder that this made and that stayed empty is removed again."""
    made = not run.exists()
    with _lock(run):
        try:
            yield
        finally:
            if made and [path.name for path in run.iterdir()] == [_LOCK]:
                (run / _LOCK).unlink()
                with suppress(OSError):  # another process put something there
                    run.rmdir()


def _lock(run: Path) -> IO[str]:
    """The open, locked lock file of a run directory, which is made if missing."""
    while True:
        make_folder(run)
        try:
            lock = (run / _LOCK).open("a+")
        except FileNotFoundError:  # the process that made the folder has just removed it
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with lock:
                lock.seek(0)
                who = lock.read(100)
            raise Problem(
                "another process is training here",
                where=str(run),
                why=f"process {who}" if who else "",
                fix="wait for it, stop it (`kill PID` lets it save), or give another --out",
                exit_code=EXISTS,
            ) from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), (run / _LOCK).stat()):
                with suppress(OSError):  # only for the message above
                    os.ftruncate(lock.fileno(), 0)
                    os.write(lock.fileno(), f"{os.getpid()} on {platform.node()}".encode())
                return lock
        lock.close()  # it was removed between opening and locking


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Waits until no other process changes a folder that is replaced as a whole by each change.

    The lock is on the folder itself: who waited for one that was replaced meanwhile tries again.
    """
    while True:
        held = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # on a file system without locks
                fcntl.flock(held, fcntl.LOCK_EX)
            if folder.exists() and os.path.samestat(os.fstat(held), folder.stat()):
                yield
                return
        finally:
            os.close(held)
