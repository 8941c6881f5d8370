"""Keeps the finished shards of a killed conversion beside its target, for the next call.

`.NAME.parts` holds each finished shard and, written after it, a record with its sha256. It belongs
to one plan for one source, is locked by one process at a time, and is removed when the conversion
ends. A download keeps its files in the same way.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jaxmodels
from bridge.conversion.plan import ConversionPlan
from bridge.core.tensors import Fingerprint, Tensor
from bridge.storage.safetensors_writer import write_file, write_index
from jaxmodels.files import files_below, sync, write_json
from jaxmodels.reading import digest

PLAN = "plan"


@contextmanager
def kept_parts(
    target: Path, source: Path, plan: ConversionPlan, weights: str = ""
) -> Iterator[Path | None]:
    """The folder of finished shards; None if there is one shard only, or another process holds it.

    `weights` names those that are written, if the source holds several.
    """
    if len(plan.shards) == 1:
        yield None
        return
    with kept_beside(target, _identity(source, plan) + weights) as folder:
        yield folder


@contextmanager
def kept_beside(
    target: Path, identity: str, keeps: Callable[[Exception], bool] = lambda error: False
) -> Iterator[Path | None]:
    """A folder beside `target` for what a later call can use; None if another process holds it.

    It stays when the process is killed or interrupted; success removes it, and so does an error
    unless `keeps` returns True for it. What belongs to another `identity` is cleared.
    """
    folder = target.with_name(f".{target.name}.parts")
    lock = _locked(folder)
    if lock is None:
        yield None
        return
    try:
        _only_of(folder, identity)
        yield folder
    except Exception as error:
        if not keeps(error):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def write_shards(
    folder: Path, parts: Path | None, plan: ConversionPlan, tell: Callable[[Tensor], None]
) -> tuple[dict[str, Fingerprint], dict[str, str], int]:
    """Writes the shards of a plan, and their index when there are several.

    Args:
        folder: the output.
        parts: the folder that keeps finished ones until the end; None to keep none.
        plan: the plan.
        tell: called after each tensor.

    Returns:
        tensor name → {"dtype", "shape", digest}; shard → sha256 of the intended bytes; and how
        many shards were taken from `parts`.
    """
    found: dict[str, Fingerprint] = {}
    files: dict[str, str] = {}
    there = 0
    for name, tensors in plan.shards.items():
        held = _finished(parts, name) if parts else None
        if held is not None:
            there += 1
            plan.errors.update(held["errors"])
            for tensor in tensors:
                tell(tensor)
            found |= held["tensors"]
            files[name] = held["sha256"]
            continue
        written, files[name] = write_file((parts or folder) / name, tensors, tell)
        found |= written
        if parts:
            sync(parts / name)
            record = {"sha256": files[name], "tensors": written, "errors": plan.errors}
            write_json(parts / f"{name}.json", record)
    if parts:
        for name in plan.shards:
            (parts / name).rename(folder / name)
    write_index(folder, plan.shards)
    return found, files, there


def _finished(parts: Path, name: str) -> dict[str, Any] | None:
    """The record of a complete shard."""
    try:
        record = json.loads((parts / f"{name}.json").read_text(encoding="utf-8"))
        return dict(record) if record["sha256"] == digest(parts / name) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _locked(folder: Path) -> int | None:
    """Makes and locks the folder; None if another process holds it."""
    while True:
        folder.mkdir(exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return None
        if folder.exists() and os.path.samestat(os.fstat(lock), folder.stat()):
            return lock
        os.close(lock)  # its holder has removed it meanwhile


def _only_of(folder: Path, identity: str) -> None:
    """Removes the files of another plan."""
    try:
        same = (folder / PLAN).read_text(encoding="utf-8") == identity
    except OSError:
        same = False
    if not same:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (folder / PLAN).write_text(identity, encoding="utf-8")


def _identity(source: Path, plan: ConversionPlan) -> str:
    """What determines the shards: the plan, and the present files of the source."""
    files = files_below(source) if source.is_dir() else [source]
    state = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    identity = [jaxmodels.__version__, str(source.resolve()), state, plan.rows]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()
