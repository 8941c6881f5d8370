"""Turns errors of the operating system and of libraries into `Problem`s."""

import errno
import io
import os
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from jaxmodels.errors import CORRUPT, INTERNAL, NO_SPACE, Problem
from jaxmodels.extras import EXTRAS, missing
from jaxmodels.terminal import FULL


def explain(error: Exception) -> Exception:
    """The error to print; one of our own is returned unchanged."""
    if hasattr(error, "exit_code"):
        return error
    # Libraries wrap the error in types of their own, but keep the system's message.
    full = any(os.strerror(code) in str(error) for code in FULL)
    if full or (isinstance(error, OSError) and error.errno in FULL):
        return Problem(
            "the disk is full",
            where=_place(error),
            why=str(error),
            fix="free some space, or write elsewhere; what was there before is untouched",
            exit_code=NO_SPACE,
        )
    if _is_memory(error):
        return Problem(
            "there is not enough memory",
            where=_place(error),
            why=(str(error).splitlines() or [""])[0],
            fix="close other programs, or use a smaller --batch (in training with more --accum, or "
            "with --remat) or a smaller model; `jaxmodels plan` computes what fits",
            exit_code=NO_SPACE,
        )
    if isinstance(error, FileNotFoundError):
        return Problem(
            "no such file or folder", where=_place(error), fix="check the path", exit_code=CORRUPT
        )
    if isinstance(error, FileExistsError):
        return Problem(
            "something else has this name",
            where=_place(error),
            fix="give another path",
            exit_code=CORRUPT,
        )
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        return missing(error.name)
    if isinstance(error, OSError):
        return Problem(str(error.strerror or error), where=_place(error), exit_code=CORRUPT)
    return Problem(
        f"{type(error).__name__}: {error}",
        why="this is a defect of jaxmodels, not of your input",
        fix="run again with --debug and report the traceback",
        exit_code=INTERNAL,
    )


def _is_memory(error: Exception) -> bool:
    """Whether host or device memory ran out; for a device JAX names the status in the message."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or str(error).startswith("RESOURCE_EXHAUSTED")


def _place(error: Exception) -> str:
    """The file that an error concerns: its `filename`, or else (errors of read and write have
    none) the file that was open where it was raised.
    """
    if filename := getattr(error, "filename", None):
        return str(filename)
    found, trace = "", error.__traceback__
    while trace is not None:
        for value in trace.tb_frame.f_locals.values():
            for name in _names(value):
                found = name
        trace = trace.tb_next
    return found


def _names(value: Any) -> Iterator[str]:
    """The path of a file object, or of those among an object's attributes."""
    for file in (value, *getattr(value, "__dict__", {}).values()):
        name = getattr(file, "name", None) if isinstance(file, io.IOBase) else None
        if isinstance(name, str | PurePath):
            yield str(name)
