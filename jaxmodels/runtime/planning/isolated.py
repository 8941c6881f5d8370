"""A call in a process of its own: what crashes or prints there does neither here."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class ProcessDied(Exception):
    """The process ended without an answer.

    Args:
        code: its exit code; negative, the signal that ended it.
        log: the end of what it wrote to standard error.
    """

    def __init__(self, code: int | None, log: str):
        super().__init__(f"exit code {code}")
        self.code, self.log = code, log


def run_isolated(function: Callable[..., T], *args: Any) -> T:
    """The result of `function(*args)`, computed in a new process, or the exception that it raised.

    Args:
        function: one of a module; it, its arguments and its result are copied between processes.

    Raises:
        ProcessDied: the process was ended from outside or by a fault of native code.
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
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 2)  # native code, too, writes there
    try:
        answer = (True, function(*args))
    except Exception as error:
        answer = (False, error)
    connection.send(answer)
