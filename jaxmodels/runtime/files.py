"""Files that appear whole or not at all, and digests that find what the disk got wrong."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxmodels.errors import EXISTS, Problem

MANIFEST = "manifest.json"


def write_text(path: Path, text: str) -> None:
    """Writes a small file in one step: temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


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
        Problem: (exists) something is there already and `force` is off.
    """
    if path.exists() and not force:
        raise Problem(
            "the output exists already",
            where=str(path),
            fix="give another path, or --force to replace it",
            exit_code=EXISTS,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in files_below(temporary):
            sync(file)
        replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(new: Path, path: Path) -> None:
    """Renames `new` to `path`; what was there is removed only after the rename."""
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        path.rename(old)
    new.rename(path)
    sync(path.parent)
    if old.is_dir():
        shutil.rmtree(old)
    else:
        old.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """fsync of a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def as_full_disk(error: Exception, path: Path) -> Exception:
    """An OSError for what a storage library reports, in its own types, as a full disk."""
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        if os.strerror(code) in str(error):
            return OSError(code, os.strerror(code), str(path))
    return error


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and its folders, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path) -> dict[str, dict[str, Any]]:
    """Relative path → bytes and sha256 of every file in a folder, but for its manifest."""
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": digest(path)}
        for path in files_below(folder)
        if path != folder / MANIFEST
    }


def damage(folder: Path) -> list[str]:
    """What is wrong with a folder that carries a manifest: one sentence a file; empty if sound."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        promised = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{MANIFEST} cannot be read ({type(error).__name__})"]
    found = digests(folder)
    return [
        *(f"{name} is missing" for name in promised if name not in found),
        *(f"{name} is not in the manifest" for name in found if name not in promised),
        *(
            f"{name} is damaged (its sha256 is not the one in the manifest)"
            for name in promised
            if name in found and found[name] != promised[name]
        ),
    ]
