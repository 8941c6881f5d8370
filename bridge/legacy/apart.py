"""Reads files that are not trusted in a process of their own, with limits; see `child`.

Zips, pickles and msgpack are taken apart there. What arrives here is JSON, and the bytes of a
tensor when it is asked for, both checked once more. The process sees nothing of our environment,
can write no file and start no other, and ends with the last tensor that could be asked of it.
"""

import json
import os
import signal
import subprocess
import sys
import weakref
from contextlib import suppress
from functools import lru_cache
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import ml_dtypes
import numpy as np

from bridge.legacy.inflate import FREE, RATIO
from bridge.legacy.plain import Garbled, decode
from jaxmodels.errors import CORRUPT, MISMATCH, UNSAFE, Problem

# What reading may take: memory besides the tensor that is asked for, and time of the processor,
# ample for any machine, with more for each byte.
MEMORY, SECONDS, BYTES_PER_SECOND = 2**30, 60, 5_000_000
MAX_ANSWER = 2**25  # bytes of JSON; 1,000 tensors with their optimiser take 400,000
MAX_TEXT = 10_000  # characters that a problem may say
_PIPE = 2**20

_BEGIN = """
import sys
sys.path += sys.argv[2:]
from bridge.legacy.child import serve
serve(sys.argv[1])
"""
# Where it finds our packages and the two that they need; no other folder of packages is looked at.
_FOLDERS = [Path(__file__).parents[2], *(Path(m.__path__[0]).parent for m in (np, ml_dtypes))]


def read(kind: str, path: Path, options: Any = None) -> Any:
    """What a file holds: plain values, and a `Tensor`, unread, for each tensor or array.

    Args:
        kind: "torch", "pickles", "msgpack", or of a zip "names" and "check"; `child` says more.
        path: the file.
        options: what the reader of that kind takes besides.

    Raises:
        Problem: what the reader raised; (unsafe) it took more memory or time than it should;
            (corrupt) it ended without an answer.
    """
    child = _Child(kind, path)
    size = path.stat().st_size
    request = {"path": os.fsencode(path).decode("utf-8", "surrogateescape"), "options": options}
    answer = child.ask(request, work=size)
    try:
        return decode(answer["value"], child.tensor, FREE + RATIO * size)
    except (Garbled, KeyError) as error:
        raise child.garbled(str(error)) from error


def names(path: Path) -> list[str]:
    """The names that a zip's directory lists, unchecked; empty where it cannot be read."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return []
    stat = path.stat()
    return _names(path, (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=16)
def _names(path: Path, version: tuple[int, ...]) -> list[str]:
    """`names` of one version of a file: whether it is of a format is asked for each of them."""
    try:
        found = read("names", path)
    except Problem:
        return []
    return found if all(isinstance(name, str) for name in found) else []


class _Child:
    """A process that reads one file."""

    def __init__(self, kind: str, path: Path):
        self.path, self.lock = path, Lock()  # one question at a time
        known = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # some Pythons need them to begin
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-X", "utf8", "-c", _BEGIN, kind, *map(str, _FOLDERS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"OPENBLAS_NUM_THREADS": "1"} | {k: v for k, v in os.environ.items() if k in known},
            start_new_session=True,  # Ctrl-C is ours
            pipesize=_PIPE,
        )
        self.end = weakref.finalize(self, _end, self.process)

    def tensor(self, number: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Reads the values of a tensor."""
        data = np.empty(prod(shape) * dtype.itemsize, np.uint8)
        self.ask({"tensor": number}, memory=3 * data.nbytes, work=data.nbytes, into=data)
        return data.view(dtype).reshape(shape)

    def ask(
        self,
        request: dict[str, Any],
        memory: int = 0,
        work: int = 0,
        into: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """The answer to a request.

        Args:
            request: see `child`.
            memory: bytes that it may take more than `MEMORY`.
            work: bytes that it has to go through.
            into: where the bytes go that follow the answer (uint8 [n]); there must be so many.

        Raises:
            Problem: as `read`.
        """
        seconds = SECONDS + work // BYTES_PER_SECOND
        request = {**request, "memory": MEMORY + memory, "seconds": seconds}
        with self.lock:
            try:
                answer = self.exchange(request)
                if "problem" not in answer and into is not None:
                    if answer != {"bytes": into.nbytes}:
                        raise Garbled("a tensor of another size")
                    if self.process.stdout.readinto(into) != into.nbytes:  # type: ignore[union-attr]
                        raise EOFError
            except (EOFError, BrokenPipeError) as error:
                raise self.died(seconds) from error
            except (ValueError, RecursionError) as error:
                raise self.garbled(str(error)) from error
            except BaseException:  # Ctrl-C: what comes next would be the answer to this request
                self.end()
                raise
        if "problem" in answer:
            raise self.problem(answer["problem"])
        return answer

    def exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        """Sends a line and receives one; raises EOFError, BrokenPipeError or ValueError."""
        requests, answers = self.process.stdin, self.process.stdout
        assert requests is not None
        assert answers is not None
        if not self.end.alive:
            raise EOFError
        requests.write(json.dumps(request).encode() + b"\n")
        requests.flush()
        line = answers.readline(MAX_ANSWER)
        if not line:
            raise EOFError
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise Garbled("no answer")
        return answer

    def problem(self, said: Any) -> Problem:
        """The problem that the process told."""
        said = said if isinstance(said, dict) else {}
        what, where, why, fix = (
            str(said.get(key) or "")[:MAX_TEXT] for key in ("what", "where", "why", "fix")
        )
        code = said.get("exit_code")
        known = code if code in (CORRUPT, UNSAFE, MISMATCH) else CORRUPT
        return Problem(what, where=where or str(self.path), why=why, fix=fix, exit_code=known)

    def garbled(self, why: str) -> Problem:
        """The problem when it answers what it should not."""
        self.end()
        return Problem(
            "the process that reads the file answered nonsense",
            where=str(self.path),
            why=why,
            fix="fetch or save the file again",
            exit_code=UNSAFE,
        )

    def died(self, seconds: int) -> Problem:
        """The problem when it ended."""
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:
            code = 0
        self.end()
        if code == -signal.SIGXCPU:
            return Problem(
                "reading the file takes longer than it should",
                where=str(self.path),
                why=f"more than {seconds} s of the processor",
                fix="use it only if you trust it: save its tensors alone, as safetensors, elsewhere",
                exit_code=UNSAFE,
            )
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return Problem(
            "the process that reads the file ended before it was done",
            where=str(self.path),
            why=how,
            fix="try again; if it ends each time, fetch or save the file again",
            exit_code=CORRUPT,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):
            if pipe is not None:
                pipe.close()
