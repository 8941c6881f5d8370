"""The process that reads files which are not trusted, and answers what `apart` asks.

A request is a line of JSON, and so is its answer, behind which the bytes of a tensor follow. The
process imports neither JAX nor torch, and ends when nobody is left to ask.
"""

import json
import os
import resource
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import Any

from jaxmodels.errors import CORRUPT, UNSAFE, Problem

# What none of our readers has reason to do; a fence behind the readers, no wall.
_FORBIDDEN = ("socket.", "subprocess.", "ctypes.", "shutil.", "os.")
_HARMLESS = "os.listdir"  # imports do it

DISTRUST = "use it only if you trust it: save its tensors alone, as safetensors, elsewhere"

Answer = tuple[dict[str, Any], Iterable[Any]]
"""The line, and the bytes that follow it, in pieces."""


def serve(kind: str) -> None:
    """Answers requests until they end; `kind` is what will be read, see `reader`."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what prints does not answer
    read = reader(kind)
    tensors: list[Any] = []
    confine()
    for line in requests:
        said, data = _answer(json.loads(line), read, tensors)
        answers.write(json.dumps(said).encode() + b"\n")
        for piece in data:
            answers.write(piece)
        answers.flush()


def reader(kind: str) -> Callable[[Path, Any], tuple[Any, list[Any]]]:
    """What reads a file of a kind: it returns JSON and the tensors that this numbers.

    Only what is needed is imported, and all of it before the limits begin.
    """
    from bridge.legacy.zip_reader import names_in, read_entries

    if kind == "names":  # that a zip's directory lists
        return lambda path, _: (_list(names_in(path)), [])
    if kind == "check":  # raises what is wrong with a zip
        return lambda path, _: (_list([entry.name for entry in read_entries(path)]), [])
    from bridge.sandbox.codec import encode

    if kind == "torch":
        from bridge.legacy.torch_file import read_torch

        return lambda path, _: encode(read_torch(path))
    if kind == "pickles":
        from bridge.legacy.array_pickle import read_members

        return lambda path, names: encode(read_members(path, names))
    if kind == "values":  # a pickle of plain values
        from bridge.legacy.unpickle import read_values

        return lambda path, _: encode(read_values(path))
    from bridge.legacy.msgpack_reader import read_msgpack

    return lambda path, _: encode(read_msgpack(path))


def _list(names: list[str]) -> dict[str, Any]:
    """As `plain.encode` would, which imports numpy."""
    return {"top": [0], "table": [["list", names]]}


def _answer(request: dict[str, Any], read: Any, tensors: list[Any]) -> Answer:
    """The answer to a request for the file, or for a tensor in it."""
    memory, seconds = request["memory"], request["seconds"]
    try:
        _limit(memory, seconds)
        if "tensor" in request:
            from bridge.core.tensors import pieces

            array = tensors[request["tensor"]].read()
            return {"bytes": array.nbytes}, pieces(array)
        said, tensors[:] = read(Path(request["path"]), request["options"])
        return {"value": said}, ()
    except Problem as problem:
        return _told(problem)
    except MemoryError:
        pass  # what took it is let go first
    except Exception as error:
        why = f"{type(error).__name__}: {str(error)[:200]}"
        return _told(Problem("the file cannot be read", why=why, exit_code=CORRUPT))
    return _told(
        Problem(
            "reading the file takes more memory than it should",
            why=f"more than {memory:,} bytes",
            fix=DISTRUST,
            exit_code=UNSAFE,
        )
    )


def _told(problem: Problem) -> Answer:
    return {"problem": vars(problem)}, ()


def confine() -> None:
    """Ends what reading does not need: files that are written, processes, sockets, core dumps."""
    for name, most in (("FSIZE", 0), ("CORE", 0), ("NPROC", 0), ("NOFILE", 16)):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    sys.dont_write_bytecode = True
    sys.addaudithook(_refuse)


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
    if writes or (event.startswith(_FORBIDDEN) and event != _HARMLESS):
        raise PermissionError(f"{event} {str(args)[:100]}")


def _limit(memory: int, seconds: int) -> None:
    """What may be taken from now on: bytes of memory, and seconds of the processor."""
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
