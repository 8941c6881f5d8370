"""Reads files that somebody else may have made: bounded, and never waiting."""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from jaxmodels.files import naming

MAX_JSON = 30_000_000  # bytes; read as JSON they may fill a gigabyte
MAX_DEPTH, MAX_DIGITS = 50, 40  # of brackets in brackets; of a number


def read_limited(path: Path, limit: int) -> bytes:
    """The content of a file that somebody else may have made; it never waits, as for a pipe.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: it is not a regular file, or longer than `limit` bytes.
    """
    with _regular(path, limit) as file:
        content = file.read(limit + 1)
    if len(content) > limit:  # it grows
        raise _too_large(limit)
    return content


@contextmanager
def _regular(path: Path, limit: int | None) -> Iterator[BufferedReader]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with naming(path), open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        if limit is not None and status.st_size > limit:
            raise _too_large(limit)
        yield file


def _too_large(limit: int) -> ValueError:
    return ValueError(f"it is too large: at most {limit:,} bytes are read")


def read_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """The JSON object in a file that somebody else may have made.

    Raises:
        OSError: as `read_limited`.
        ValueError: as `read_limited` and `json_object`.
    """
    return json_object(read_limited(path, limit))


def json_object(text: bytes) -> dict[str, Any]:
    """The JSON object in a text.

    Raises:
        ValueError: it is not JSON in UTF-8, no object, has a key twice, numbers of more than
            `MAX_DIGITS` digits, or more than `MAX_DEPTH` brackets in brackets.
    """
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_int=_integer)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it is a {type(value).__name__}, not an object")
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inside = (part.values() if isinstance(part, dict) else part for part in level)
        level = [part for parts in inside for part in parts if isinstance(part, dict | list)]
        if not level:
            return value
    raise ValueError("it is nested too deeply")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits):,} digits")
    return int(digits)


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(items)
    if len(result) != len(items):
        raise ValueError("a key occurs twice")
    return result


def digest(path: Path, limit: int | None = None) -> str:
    """sha256 of a file, in hexadecimal; raises as `read_limited` (None: no limit)."""
    with _regular(path, limit) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
