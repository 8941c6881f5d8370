"""Files that appear whole or not at all."""

import ctypes
import errno
import fcntl
import glob
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from data_pipelines.errors import EXISTS, DataProblem

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a small file in one step: temporary name, fsync, rename."""
    with _temporary(path, Path.touch) as temporary:
        temporary.write_bytes(content)
        sync(temporary)
        temporary.replace(path)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of text as UTF-8."""
    write_bytes(path, text.encode())


@contextmanager
def whole_folder(path: Path, force: bool = False) -> Iterator[Path]:
    """A folder to fill; it takes the name `path` only when the block ends without an error.

    Args:
        path: the folder to create.
        force: replace what is there, once the new one is complete.

    Raises:
        DataProblem: (exists) something is there, before or after the block, and `force` is off.
    """
    make_folder(path.parent)
    with _temporary(path, Path.mkdir) as temporary:
        if not force:
            refuse_existing(path)
        yield temporary
        for below in (*temporary.rglob("*"), temporary):
            sync(below)
        _take_name(temporary, path, force)
        sync(path.parent)  # before what was there is removed


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives errors of the disk their path: a failed read or write tells none, or a temporary one,
    which is replaced.
    """
    try:
        yield
    except OSError as error:
        temporary = str(error.filename or ".tmp").endswith(".tmp")
        if error.errno in FULL or (error.errno and temporary):
            error.filename = str(path)
        raise


def refuse_existing(path: Path) -> None:
    """Raises DataProblem (exists) if something is there."""
    if os.path.lexists(path):
        raise _exists(path)


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, each of them safe on the disk."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def sync(path: Path) -> None:
    """fsync of a file or folder."""
    with _opened(path) as descriptor:
        os.fsync(descriptor)


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


def digest(path: Path, limit: int | None = None) -> str:
    """sha256 of a file, in hexadecimal; raises as `read_limited` (None: no limit)."""
    with _regular(path, limit) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _temporary(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A new file or folder beside `path`; what has its name after the block is removed.

    It is locked while this process lives: the next writer of `path` clears what is not.
    """
    _clear(path)
    with naming(path):
        temporary, lock = _locked(path, make)
    try:
        with naming(path):
            yield temporary
    finally:
        _remove(temporary)
        os.close(lock)


def _locked(path: Path, make: Callable[[Path], None]) -> tuple[Path, int]:
    while True:
        # Random, because containers that share a disk often share their process ids too.
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        make(temporary)
        try:
            lock = os.open(temporary, os.O_RDONLY)
        except FileNotFoundError:  # another writer cleared it already
            continue
        with suppress(OSError):  # a file system without locks: then nobody clears it
            fcntl.flock(lock, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, lock
        os.close(lock)


def _clear(path: Path) -> None:
    """Removes what killed writers of `path` left beside it, and nothing of those that live."""
    pattern = f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}"
    for left in path.parent.glob(pattern + ".tmp"):
        with suppress(OSError), _opened(left) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(left)
    for old in path.parent.glob(pattern + ".old"):  # see _replace
        if os.path.lexists(path):
            _remove(old)
        else:
            old.rename(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _take_name(new: Path, path: Path, force: bool) -> None:
    """Gives the folder `new` the name `path`; what had that name has the other one after it."""
    try:
        new.rename(path)  # this replaces nothing but an empty folder
    except OSError:
        if not os.path.lexists(path):
            raise
        if not force:
            raise _exists(path) from None
        if not _exchange(new, path):
            _replace(new, path)


def _replace(new: Path, path: Path) -> None:
    """For want of `_exchange`: a kill between the renames leaves .old, which `_clear` restores."""
    old = new.with_suffix(".old")
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    sync(path.parent)
    _remove(old)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two names in one step; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    names = _AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b)
    return rename is not None and rename(*names, _RENAME_EXCHANGE) == 0


def _exists(path: Path) -> DataProblem:
    return DataProblem(
        "the output exists already",
        where=str(path),
        fix="give another path, or --force to replace it",
        exit_code=EXISTS,
    )
