"""Files and folders that appear whole or not at all.

A folder is replaced by swapping two names (`renameat2` with `RENAME_EXCHANGE`): of two renames, a
kill between them leaves the output under a hidden name only. Where the system cannot swap, the next
writer restores the name. Without `--force` a plain rename suffices. Temporaries are locked
(`flock`) by their writer, so that those of the dead can be recognised and removed.
"""

import ctypes
import errno
import fcntl
import glob
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jaxmodels.errors import EXISTS, Problem

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


class Exists(Problem):
    """Something has the name of an output that is not to be replaced."""

    def __init__(self, path: Path):
        super().__init__(
            "the output exists already",
            where=str(path),
            fix="give another path, or --force to replace it",
            exit_code=EXISTS,
        )


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


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextmanager
def atomic_folder(path: Path, force: bool = False) -> Iterator[Path]:
    """A folder to fill, which appears at `path` only if the block ends without an error.

    Args:
        path: the folder to create.
        force: replace what is there once the new folder is complete.

    Raises:
        Exists: something is there, before or after the block, and `force` is off.
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
    """Adds the path to errors of the disk, which name none after a failed read or write, or a
    temporary one.
    """
    try:
        yield
    except OSError as error:
        temporary = str(error.filename or ".tmp").endswith(".tmp")
        if error.errno in FULL or (error.errno and temporary):
            error.filename = str(path)
        raise


def refuse_existing(path: Path) -> None:
    """Raises Exists if something is there."""
    if os.path.lexists(path):
        raise Exists(path)


def make_folder(path: Path) -> None:
    """Makes a folder and its parents, and syncs each of them to the disk."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def sync(path: Path) -> None:
    """fsync of a file or folder."""
    with _opened(path) as descriptor:
        os.fsync(descriptor)


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and below, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _temporary(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A new file or folder beside `path`, removed after the block unless it was renamed.

    It is locked while this process lives: the next writer of `path` removes what is not locked.
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
        with suppress(OSError):  # on a file system without locks nobody removes it
            fcntl.flock(lock, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, lock
        os.close(lock)


def _clear(path: Path) -> None:
    """Removes what killed writers of `path` left beside it, and nothing of running ones."""
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
    """Renames the folder `new` to `path`; what was there takes its name."""
    try:
        new.rename(path)  # this replaces nothing but an empty folder
    except OSError:
        if not os.path.lexists(path):
            raise
        if not force:
            raise Exists(path) from None
        if not _exchange(new, path):
            _replace(new, path)


def _replace(new: Path, path: Path) -> None:
    """Where `_exchange` cannot: a kill between the renames leaves .old, which `_clear` restores."""
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
