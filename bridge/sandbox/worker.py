"""The process that reads an untrusted file, and answers what `client` asks.

A request is a line of JSON, and so is its answer, behind which the bytes of a tensor follow. The
process imports neither JAX nor torch, and ends when nobody is left to ask.
"""

import json
import os
import resource
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import import_module
from math import ceil
from pathlib import Path
from typing import Any

from jaxmodels.errors import CORRUPT, UNSAFE, Problem

READERS = {  # kind → what reads it, in `bridge.legacy`
    "check": "zip_reader.checked_names",  # raises what is wrong with a zip
    "msgpack": "msgpack_reader.read_msgpack",
    "names": "zip_reader.names_in",
    "pickles": "array_pickle.read_members",
    "torch": "torch_file.read_torch",
    "values": "unpickle.read_values",
}

# What none of our readers has reason to do; a fence behind the readers, no wall.
_FORBIDDEN = ("socket.", "subprocess.", "ctypes.", "shutil.", "os.")
_HARMLESS = "os.listdir"  # imports do it

DISTRUST = "use it only if you trust it: save its tensors alone, as safetensors, elsewhere"

Encoded = tuple[dict[str, Any], list[Any]]
"""JSON, and the tensors that it numbers."""
Answer = tuple[dict[str, Any], Iterable[Any]]
"""The line, and the bytes that follow it, in pieces."""


def serve(kind: str) -> None:
    """Answers requests until they end; `kind` is one of `READERS`."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what prints does not answer
    read = reader(kind)
    tensors: list[Any] = []
    confine()
    for line in requests:
        message, data = _answer(json.loads(line), read, tensors)
        answers.write(json.dumps(message).encode() + b"\n")
        for piece in data:
            answers.write(piece)
        answers.flush()


def reader(kind: str) -> Callable[..., Encoded]:
    """What reads a file of a kind, from its path and options.

    Only what is needed is imported, and all of it before the limits begin.
    """
    module, _, function = READERS[kind].partition(".")
    read = getattr(import_module(f"bridge.legacy.{module}"), function)
    if module == "zip_reader":  # as `encode` would, which imports numpy
        return lambda path: ({"top": [0], "table": [["list", read(path)]]}, [])
    from bridge.sandbox.codec import encode

    return lambda path, *options: encode(read(path, *options))


def _answer(request: dict[str, Any], read: Callable[..., Encoded], tensors: list[Any]) -> Answer:
    """The answer to a request for the file, or for a tensor in it."""
    memory, seconds = request["memory"], request["seconds"]
    try:
        _limit(memory, seconds)
        if "tensor" in request:
            from bridge.core.tensors import pieces

            array = tensors[request["tensor"]].read()
            return {"bytes": array.nbytes}, pieces(array)
        value, tensors[:] = read(Path(request["path"]), *request["options"])
        return {"value": value}, ()
    except Problem as problem:
        return _failure(problem)
    except MemoryError:
        pass  # what took it is let go first
    except Exception as error:
        why = f"{type(error).__name__}: {str(error)[:200]}"
        return _failure(Problem("the file cannot be read", why=why, exit_code=CORRUPT))
    return _failure(
        Problem(
            "reading the file takes more memory than it should",
            why=f"more than {memory:,} bytes",
            fix=DISTRUST,
            exit_code=UNSAFE,
        )
    )


def _failure(problem: Problem) -> Answer:
    return {"problem": vars(problem)}, ()


def confine() -> None:
    """Forbids what reading does not need: writing files, processes, sockets, core dumps."""
    for name, most in (("FSIZE", 0), ("CORE", 0), ("NPROC", 0), ("NOFILE", 16)):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    sys.dont_write_bytecode = True
    sys.addaudithook(_refuse)


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
    if writes or (event.startswith(_FORBIDDEN) and event != _HARMLESS):
        raise PermissionError(f"{event} {str(args)[:100]}")


def _limit(memory: int, seconds: int) -> None:
    """Limits what may be taken from now on: bytes of memory, seconds of the processor."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    limits = {resource.RLIMIT_CPU: ceil(spent.ru_utime + spent.ru_stime) + seconds}
    with suppress(FileNotFoundError), open("/proc/self/statm") as file:  # of Linux
        held = int(file.read().split()[0]) * resource.getpagesize()
        limits[resource.RLIMIT_AS] = held + memory
    for which, most in limits.items():
        hard = resource.getrlimit(which)[1]
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(which, (most, hard))
