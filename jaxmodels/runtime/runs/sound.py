"""Which checkpoints are sound, and the locks between their readers and a training. Does not import
JAX.

A sound checkpoint matches its manifest, which must be of the step that the folder is named by: one
that was renamed or copied counts as damaged. Readers (`eval`, `generate`, `verify`) hold a shared
lock on the manifest, and pruning leaves locked checkpoints alone.
"""

import fcntl
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

from jaxmodels.errors import CORRUPT, Problem
from jaxmodels.runtime.manifest import MANIFEST, damage
from jaxmodels.runtime.runs.rundir import manifest_value, steps, valid_loss

ASIDE = ".damaged"
"""Suffix of a damaged checkpoint's name, once training resumed from another one."""


def unsound(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint: one sentence each; empty if it is as it was saved.

    Every file is hashed, and the name must be the step that it was saved at.
    """
    try:
        wrong = damage(checkpoint)
    except FileNotFoundError as error:  # removed while it was read
        return [f"{Path(str(error.filename)).name} is missing"]
    step = manifest_value(checkpoint, "step")
    if wrong or str(step) == checkpoint.name:
        return wrong
    if step is None:
        return ["it is not a training checkpoint"]
    return [f"it is the checkpoint of step {step}, renamed or copied"]


def checked_finite(checkpoint: Path) -> bool:
    """Whether it was checked for NaN and infinities when saved, as earlier versions did not."""
    return manifest_value(checkpoint, "finite") is True


class HeldCheckpoint(NamedTuple):
    """A sound checkpoint that is protected from removal."""

    folder: Path
    lock: IO[bytes] | None
    """The lock of `hold`: while it is open, no training removes the checkpoint."""

    def release(self) -> None:
        """Allows it to be removed."""
        if self.lock is not None:
            self.lock.close()


def newest_sound(folder: Path, skipped: dict[int, str]) -> HeldCheckpoint | None:
    """The newest sound checkpoint, to resume from; as `first_sound`."""
    return first_sound(folder, lambda: steps(folder)[::-1], skipped)


def best_sound(folder: Path, skipped: dict[int, str]) -> HeldCheckpoint | None:
    """The best sound checkpoint by validation loss, or else the newest; as `first_sound`.

    It is the one to sample from, evaluate and convert.
    """

    def rank(step: int) -> tuple[float, int]:
        loss = valid_loss(folder / str(step))
        return (math.inf if loss is None else loss, -step)

    return first_sound(folder, lambda: sorted(steps(folder), key=rank), skipped)


def first_sound(
    folder: Path, preferred: Callable[[], list[int]], skipped: dict[int, str]
) -> HeldCheckpoint | None:
    """The first sound checkpoint in order of preference; None if there are no checkpoints.

    One that a running training removes meanwhile is passed over.

    Args:
        folder: the run's `checkpoints`.
        preferred: lists the steps, the preferred ones first.
        skipped: step → what is wrong with it. These are skipped, and those found are added.

    Raises:
        Problem: (corrupt) none of them is sound.
    """
    gone: set[int] = set()
    while left := [step for step in preferred() if step not in skipped.keys() | gone]:
        checkpoint = folder / str(left[0])
        lock = hold(checkpoint)
        wrong = unsound(checkpoint)
        if not wrong:
            return HeldCheckpoint(checkpoint, lock)
        if lock is not None:
            lock.close()
        if checkpoint.exists():
            skipped[left[0]] = "; ".join(wrong[:3])
        else:
            gone.add(left[0])
    if not skipped:
        return None
    raise Problem(
        "every checkpoint is damaged",
        where=str(folder),
        why="\n".join(list(skipped_messages(skipped))[:10]),
        fix="restore the folder from a copy, or start anew in another folder",
        exit_code=CORRUPT,
    )


def skipped_messages(skipped: dict[int, str]) -> list[str]:
    """A sentence for each checkpoint that was skipped."""
    return [f"checkpoint {step} is damaged and is skipped: {w}" for step, w in skipped.items()]


def set_aside(checkpoint: Path) -> Path:
    """Renames a damaged checkpoint to STEP.damaged and returns the new path."""
    target, count = checkpoint.with_name(checkpoint.name + ASIDE), 1
    while os.path.lexists(target):
        count += 1
        target = checkpoint.with_name(f"{checkpoint.name}{ASIDE}-{count}")
    checkpoint.rename(target)
    return target


def hold(checkpoint: Path) -> IO[bytes] | None:
    """A shared lock that keeps a training from removing a checkpoint while the file is open.

    None if the checkpoint or its manifest is gone.
    """
    return _lock(checkpoint, "rb", fcntl.LOCK_SH)


def claim(checkpoint: Path) -> IO[bytes] | None:
    """An exclusive lock, to remove a checkpoint; None while anybody reads it."""
    return _lock(checkpoint, "r+b", fcntl.LOCK_EX)  # NFS needs a writable file for it


def _lock(checkpoint: Path, mode: str, kind: int) -> IO[bytes] | None:
    path = checkpoint / MANIFEST
    try:
        file: IO[bytes] = path.open(mode)
    except OSError:
        return None
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # a file system without locks: go on without
        pass
    with suppress(OSError):
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    file.close()  # it was removed between opening and locking
    return None
