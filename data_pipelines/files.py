"""Files that appear whole or not at all."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipelines.errors import EXISTS, DataProblem


def write_text(path: Path, text: str) -> None:
    """Writes a small file in one step: temporary name, fsync, rename."""
    temporary = _temporary(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def whole_folder(path: Path, force: bool = False) -> Iterator[Path]:
    """A folder to fill; it takes the name `path` only when the block ends without an error.

    Args:
        path: the folder to create.
        force: replace what is there, once the new one is complete.

    Raises:
        DataProblem: (exists) something is there, before or after the block, and `force` is off.
    """
    _refuse_existing(path, force)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        _refuse_existing(path, force)
        _replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync(path: Path) -> None:
    """fsync of a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary(path: Path) -> Path:
    # Random, because containers that share a disk often share their process ids too.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _refuse_existing(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise DataProblem(
            "the output exists already",
            where=str(path),
            fix="give another path, or --force to replace it",
            exit_code=EXISTS,
        )


def _replace(new: Path, path: Path) -> None:
    """Renames `new` to `path`; what was there is removed only after the rename."""
    old = _temporary(path)
    if path.exists():
        path.rename(old)
    new.rename(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)
