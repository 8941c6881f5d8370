"""A call in a process of its own, whose crashes and output do not reach this one."""

import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class ProcessDied(Exception):
    """The process ended without an answer.

    Args:
        code: its exit code; negative: the signal that ended it.
        log: the end of its standard error.
    """

    def __init__(self, code: int | None, log: str):
        super().__init__(f"exit code {code}")
        self.code, self.log = code, log


def run_isolated(function: Callable[..., T], *args: Any) -> T:
    """The result of `function(*args)`, computed in a new process, or the exception that it raised.

    Args:
        function: a module-level function; it, its arguments and its result are pickled.

    Raises:
        ProcessDied: the process was killed or crashed in native code.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile() as log:
        process = context.Process(target=_answer, args=(theirs, log.name, function, args))
        process.start()
        theirs.close()
        try:
            good, value = ours.recv()
        except EOFError:
            process.join()
            text = log.read().decode(errors="replace")
            raise ProcessDied(process.exitcode, text[-2000:]) from None
        finally:
            process.terminate()
            process.join()
    if not good:
        raise value
    result: T = value
    return result


def _answer(connection: Any, log: str, function: Callable[..., Any], args: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 2)  # also for native code
    try:
        answer = (True, function(*args))
    except Exception as error:
        answer = (False, error)
    connection.send(answer)


def _end_with_parent() -> None:
    """Ends this process when its parent was killed: nobody waits for the answer any more."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
