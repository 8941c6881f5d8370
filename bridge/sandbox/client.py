"""Reads an untrusted file in a process of its own, with limits (see `worker`).

Zips, pickles and msgpack are parsed there. What arrives here is JSON, and the bytes of a
tensor when it is asked for, both checked once more. The process sees nothing of our environment,
can write no file and start no other, and ends with the last tensor that could be asked of it.
`multiprocessing` would not do: its processes answer in pickles, and inherit or import all of ours.

A fresh interpreter, no fork: it imports numpy only and starts in 0.13 s. All bytes come through it,
also those that are not compressed: one way for all formats, for 0.3 s more in half a gigabyte.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import weakref
from contextlib import suppress
from functools import lru_cache
from io import BufferedReader
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import ml_dtypes
import numpy as np

from bridge.legacy import budget
from bridge.sandbox.codec import Garbled, decode
from bridge.sandbox.worker import DISTRUST
from jaxmodels.errors import CORRUPT, MISMATCH, UNSAFE, Problem

MAX_ANSWER = 2**25  # bytes of JSON; 1,000 tensors with their optimiser take 400,000
MAX_TEXT = 10_000  # characters in each part of a problem
PIPE = 2**20  # bytes on their way; with the usual 2**16 large tensors take twice as long

_BEGIN = """
import sys
sys.path += sys.argv[2:]
from bridge.sandbox.worker import serve
serve(sys.argv[1])
"""
# Where it finds our packages and the two that they need; it looks into no other folder of packages.
FOLDERS = [
    str(Path(__file__).parents[2]),
    *{str(Path(module.__path__[0]).parent) for module in (np, ml_dtypes)},
]
_NEEDED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # by some Pythons, to begin


def read(kind: str, path: Path, *options: Any) -> Any:
    """What a file holds: plain values, and a `Tensor`, unread, for each tensor or array.

    Args:
        kind: "torch", "pickles", "values" or "msgpack"; see `worker.READERS`.
        path: the file.
        options: what the reader of that kind takes besides the path.

    Raises:
        Problem: what the reader raised; (unsafe) it took more memory or time than it should;
            (corrupt) it ended without an answer.
    """
    size, name = path.stat().st_size, os.fsencode(path).decode("utf-8", "surrogateescape")
    child = Child(kind, path)
    answer = child.ask({"path": name, "options": options}, work=size)
    try:
        return decode(answer.get("value"), child.tensor, budget.unpacked(size))
    except Garbled as error:
        raise child.nonsense(error) from error


def names(path: Path) -> list[str]:
    """The names in a zip's directory, unchecked; empty where it cannot be read."""
    with suppress(OSError), path.open("rb") as file:
        if file.read(2) == b"PK":
            stat = path.stat()
            version = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
            return _names(path, version)
    return []


@lru_cache(maxsize=16)
def _names(path: Path, version: tuple[int, ...]) -> list[str]:
    """`names` of one version of a file: each format looks at it."""
    try:
        found = read("names", path)
    except Problem:
        return []
    return found if all(isinstance(name, str) for name in found) else []


class Child:
    """A process that reads one file.

    Raises:
        Problem: (corrupt) it cannot be started.
    """

    def __init__(self, kind: str, path: Path):
        self.path, self.lock = path, Lock()  # one question at a time
        environment = {name: os.environ[name] for name in _NEEDED if name in os.environ}
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", "-c", _BEGIN, kind, *FOLDERS],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={"OPENBLAS_NUM_THREADS": "1", **environment},
                start_new_session=True,  # Ctrl-C is ours
            )
        except OSError as error:
            what = "the process that is to read the file cannot be started"
            fix = "free memory and processes, and try again"
            raise self.problem(what, str(error), fix) from error
        self.end = weakref.finalize(self, _end, self.process)
        with suppress(OSError, AttributeError):  # Linux only, and not for many at once
            fcntl.fcntl(self.process.stdout or -1, fcntl.F_SETPIPE_SZ, PIPE)

    def tensor(self, number: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Reads the values of a tensor; raises as `read`."""
        data = np.empty(prod(shape) * dtype.itemsize, np.uint8)
        self.ask({"tensor": number}, memory=3 * data.nbytes, work=data.nbytes, into=data)
        return data.view(dtype).reshape(shape)

    def ask(
        self, request: Any, memory: int = 0, work: int = 0, into: np.ndarray | None = None
    ) -> dict[str, Any]:
        """The answer to a request.

        Args:
            request: see `worker`.
            memory: bytes that it may take, besides `budget.MEMORY`.
            work: bytes that it goes through.
            into: uint8 [n], for the n bytes that follow the answer.

        Raises:
            Problem: as `read`.
        """
        seconds = budget.seconds(work)
        limits = {"memory": budget.MEMORY + memory, "seconds": seconds}
        with self.lock:
            try:
                answer = self.exchange({**request, **limits}, into)
            except (EOFError, OSError):
                raise self.death(seconds) from None
            except (ValueError, RecursionError) as error:
                raise self.nonsense(error) from error
            except BaseException:  # Ctrl-C: the next answer would be that to this request
                self.end()
                raise
        if "problem" in answer:
            raise self.reported(answer["problem"])
        return answer

    def exchange(self, request: dict[str, Any], into: np.ndarray | None) -> dict[str, Any]:
        """Sends a line and receives the answer; raises EOFError, OSError, ValueError."""
        requests, answers = self.process.stdin, self.process.stdout
        assert requests is not None
        assert isinstance(answers, BufferedReader)
        if not self.end.alive:
            raise EOFError
        requests.write(json.dumps(request).encode() + b"\n")
        requests.flush()
        line = answers.readline(MAX_ANSWER)
        if not line:
            raise EOFError
        if len(line) == MAX_ANSWER:
            raise Garbled(f"{MAX_ANSWER:,} bytes of names and settings, and more")
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise Garbled("no answer")
        if into is not None and "problem" not in answer:
            if answer != {"bytes": into.nbytes}:
                raise Garbled("a tensor of another size")
            if answers.readinto(into.data) != into.nbytes:
                raise EOFError
        return answer

    def problem(self, what: str, why: str, fix: str, code: int = CORRUPT) -> Problem:
        """A problem with the file."""
        return Problem(what, where=str(self.path), why=why, fix=fix, exit_code=code)

    def reported(self, report: Any) -> Problem:
        """The problem that the process answered."""
        report = report if isinstance(report, dict) else {}
        what, where, why, fix = (
            str(report.get(key, ""))[:MAX_TEXT] for key in ("what", "where", "why", "fix")
        )
        code = report.get("exit_code")
        problem = self.problem(what, why, fix, code if code in (UNSAFE, MISMATCH) else CORRUPT)
        problem.where = where or problem.where
        return problem

    def nonsense(self, error: Exception) -> Problem:
        """Ends the process; the problem when it answers what it should not."""
        self.end()
        what = "the process that reads the file answers nonsense"
        return self.problem(what, str(error)[:MAX_TEXT], DISTRUST, UNSAFE)

    def death(self, seconds: int) -> Problem:
        """Ends the process; the problem when it has ended by itself."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        code, log = self.process.wait(), self.process.stderr
        output = log.read(MAX_TEXT).decode(errors="replace") if log and not log.closed else ""
        self.end()
        if code == -signal.SIGXCPU:
            what = "reading the file takes longer than it should"
            return self.problem(what, f"more than {seconds} s of the processor", DISTRUST, UNSAFE)
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return self.problem(
            "the process that reads the file ended before it was done",
            "\n".join([how, *output.strip().splitlines()[-1:]]),
            "try again; if it ends each time, fetch or save the file again",
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        with suppress(OSError):
            if pipe is not None:
                pipe.close()
