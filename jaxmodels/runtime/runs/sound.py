"""Which checkpoints are sound, and how those that read them and a training keep out of each other's
way; without starting JAX."""

import fcntl
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

from jaxmodels.errors import CORRUPT, Problem
from jaxmodels.runtime.files import MANIFEST, damage
from jaxmodels.runtime.runs.rundir import manifest_value, steps, valid_loss

ASIDE = ".damaged"
"""What the name of a damaged checkpoint ends with, once training went on from another one."""


def unsound(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint: one sentence each; empty if it is as it was saved.

    Every file is hashed, and the step that it was saved for must be its name.
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
    """Whether its numbers were found to be finite when it was saved, which earlier versions did
    not look at."""
    return manifest_value(checkpoint, "finite") is True


class HeldCheckpoint(NamedTuple):
    """A sound checkpoint."""

    folder: Path
    held: IO[bytes] | None
    """As of `hold`: while it is open, no training removes the checkpoint."""

    def release(self) -> None:
        """Lets it be removed."""
        if self.held is not None:
            self.held.close()


def newest_sound(folder: Path, passed: dict[int, str]) -> HeldCheckpoint | None:
    """The newest sound checkpoint: the one to go on from; as `first_sound`."""
    return first_sound(folder, lambda: steps(folder)[::-1], passed)


def best_sound(folder: Path, passed: dict[int, str]) -> HeldCheckpoint | None:
    """The best sound checkpoint by validation loss, or else the newest; as `first_sound`.

    This is the one to sample from, to measure and to convert.
    """

    def rank(step: int) -> tuple[float, int]:
        loss = valid_loss(folder / str(step))
        return (math.inf if loss is None else loss, -step)

    return first_sound(folder, lambda: sorted(steps(folder), key=rank), passed)


def first_sound(
    folder: Path, wanted: Callable[[], list[int]], passed: dict[int, str]
) -> HeldCheckpoint | None:
    """The first of the wanted checkpoints that is sound; None when there are none.

    A training that goes on meanwhile may remove one that is looked at: then the next one is taken.

    Args:
        folder: the run's `checkpoints`.
        wanted: lists the steps, those to be preferred first.
        passed: step → what is wrong with it. These are passed over, and those found are added.

    Raises:
        Problem: (corrupt) none of them is sound.
    """
    gone: set[int] = set()
    while left := [step for step in wanted() if step not in passed.keys() | gone]:
        checkpoint = folder / str(left[0])
        held = hold(checkpoint)
        wrong = unsound(checkpoint)
        if not wrong:
            return HeldCheckpoint(checkpoint, held)
        if held is not None:
            held.close()
        if checkpoint.exists():
            passed[left[0]] = "; ".join(wrong[:3])
        else:
            gone.add(left[0])
    if not passed:
        return None
    raise Problem(
        "every checkpoint is damaged",
        where=str(folder),
        why="\n".join(list(skipped_messages(passed))[:10]),
        fix="restore the folder from a copy, or start anew in another folder",
        exit_code=CORRUPT,
    )


def skipped_messages(passed: dict[int, str]) -> list[str]:
    """A sentence for each checkpoint that was passed over."""
    return [f"checkpoint {step} is damaged and is passed over: {w}" for step, w in passed.items()]


def set_aside(checkpoint: Path) -> Path:
    """Renames what is no sound checkpoint to STEP.damaged, so that nothing takes it for one.

    Returns:
        its new path.
    """
    target, count = checkpoint.with_name(checkpoint.name + ASIDE), 1
    while os.path.lexists(target):
        count += 1
        target = checkpoint.with_name(f"{checkpoint.name}{ASIDE}-{count}")
    checkpoint.rename(target)
    return target


def hold(checkpoint: Path) -> IO[bytes] | None:
    """Keeps a training from removing a checkpoint, as long as the file that this gives is open.

    None if it is gone, or has no manifest to be held by.
    """
    return _lock(checkpoint, "rb", fcntl.LOCK_SH)


def claim(checkpoint: Path) -> IO[bytes] | None:
    """The right to remove a checkpoint, until the file is closed; None while anybody reads it."""
    return _lock(checkpoint, "r+b", fcntl.LOCK_EX)  # an exclusive lock of NFS wants to write


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
    except OSError:  # a file system without locks: nobody is waited for
        pass
    with suppress(OSError):
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    file.close()  # it was removed between opening and locking
    return None
