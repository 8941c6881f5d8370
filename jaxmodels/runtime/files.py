"""Files that appear whole or not at all, and digests that find what the disk got wrong."""

import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxmodels.errors import EXISTS, Problem

MANIFEST = "manifest.json"
UNKNOWN = "is not in the manifest"
_SEAL = re.compile(rb'"seal": "([0-9a-f]{64})"\n}\n')
MAX_JSON = 30_000_000  # bytes; read as JSON they may fill a gigabyte
MAX_DEPTH, MAX_DIGITS = 50, 40  # of brackets in brackets; of a number
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ODD, _OPEN = re.compile("[\ud800-\udfff*?[]"), Path("/proc/self/fd")
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


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextmanager
def whole_folder(path: Path, force: bool = False) -> Iterator[Path]:
    """A folder to fill; it takes the name `path` only when the block ends without an error.

    Args:
        path: the folder to create.
        force: replace what is there, once the new one is complete.

    Raises:
        Problem: (exists) something is there, before or after the block, and `force` is off.
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
    """Raises Problem (exists) if something is there."""
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


def as_full_disk(error: Exception, path: Path) -> Exception:
    """An OSError for what a storage library reports, in its own types, as a full disk."""
    for code in FULL:
        if os.strerror(code) in str(error):
            return OSError(code, os.strerror(code), str(path))
    return error


def plain(path: Path) -> Path:
    """The absolute path of what is there, under a name that Orbax and tensorstore cope with.

    They take UTF-8 only (where the locale is ASCII, nothing else but ASCII is), and Orbax looks for
    its own files by a pattern: below a folder `[1]` it finds none of them, and says nothing. Such
    a name is replaced, with what stands before it, by what Linux calls an open folder:
    /proc/self/fd/N. It stays open.
    """
    path = path.absolute()
    for part in (path, *path.parents):
        if _ODD.search(part.name) and _OPEN.is_dir():
            return _OPEN / str(_held(part, part.stat().st_ino)) / path.relative_to(part)
    return path


@lru_cache(maxsize=64)
def _held(folder: Path, number: int) -> int:
    """A descriptor of a folder; `number` is its inode, so that a new folder gets another."""
    return os.open(folder, os.O_RDONLY | os.O_CLOEXEC)


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and its folders, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


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


def digests(
    folder: Path,
    wanted: Callable[[str], bool] = lambda name: name != MANIFEST,
    known: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, dict[str, Any]]:
    """Relative path → bytes and sha256 of every file in a folder, but for its manifest.

    Files whose sha256 is `known` are not read.
    """
    return {
        name: {"bytes": path.stat().st_size, "sha256": known.get(name) or digest(path)}
        for path in files_below(folder)
        if wanted(name := str(path.relative_to(folder)))
    }


def write_manifest(
    folder: Path, content: dict[str, Any], known: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Writes a folder's manifest: `content`, the digests of all files, and a seal on itself.

    What is `known` as in `digests` was hashed while it was written.
    """
    write_sealed(folder / MANIFEST, {**content, "files": digests(folder, known=known)})


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """`write_json`; its last entry, `seal`, is the sha256 of all that stands before it."""
    text = json.dumps({**value, "seal": ""}, indent=2) + "\n"
    before, behind = text[:-4], text[-4:]
    write_text(path, before + hashlib.sha256(before.encode()).hexdigest() + behind)


def read_sealed(path: Path) -> dict[str, Any]:
    """The JSON object in a file of `write_sealed`.

    Raises:
        OSError: there is no such file.
        ValueError: not a bit of it may have changed, and something has.
    """
    text = read_limited(path, MAX_JSON)
    value = json_object(text)
    if not value:
        raise ValueError("it is empty")
    last = list(value.values())[-1]
    # What was written before there were seals ends otherwise.
    if isinstance(last, str) and len(last) == 64:
        found = _SEAL.search(text, max(0, len(text) - 100))
        if found is None or found.end() != len(text) or _hash(text[: found.start(1)]) != last:
            raise ValueError("its seal is broken")
    return value


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def damage(folder: Path) -> list[str]:
    """What is wrong with a folder that carries a manifest: one sentence a file; empty if sound."""
    try:
        promised = read_sealed(folder / MANIFEST)["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{MANIFEST} is damaged ({error if str(error) else type(error).__name__})"]
    return differing(promised, digests(folder))


def differing(promised: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """How files differ from what was promised of them: one sentence a file.

    Args:
        promised: name → digest, as a manifest has it.
        found: name → digest, as the files are.
    """
    return [
        *(f"{name} is missing" for name in promised if name not in found),
        *(f"{name} {UNKNOWN}" for name in found if name not in promised),
        *(
            f"{name} is damaged (its sha256 is not the one in the manifest)"
            for name in promised
            if name in found and found[name] != promised[name]
        ),
    ]


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


def _exists(path: Path) -> Problem:
    return Problem(
        "the output exists already",
        where=str(path),
        fix="give another path, or --force to replace it",
        exit_code=EXISTS,
    )
