"""Checkpoints that survive kills, full disks and flipped bits.

A checkpoint is a folder `checkpoints/<step>/`: `params/` (Orbax, nested by path), `train/` (Orbax:
optimiser, other state, step, PRNG key), `ema/` (Orbax, as `params/`, if an average of the
parameters is kept), `data.json` (position in the data) and `manifest.json` with the sha256 of every
file and the identity of the run's model (`rundir.identity`). It is written under a temporary name
and renamed when complete, so a folder named by a number was complete.

Orbax's CheckpointManager is not used, because the manifest must be inside what is renamed: Orbax
accepts flipped bits, and lists as latest a step whose item was deleted.

A checkpoint at a jump of the loss holds the state after it, by a step at most: the loss of a step
is read while the next runs, whose input was donated. The checkpoint before the jump is kept too,
instead of a spare copy of the state. To go back, remove the checkpoints after it.
"""

import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from jaxmodels.cli import say
from jaxmodels.runtime.multihost import processes
from jaxmodels.files import atomic_folder, make_folder, write_json
from jaxmodels.runtime.manifest import MANIFEST, write_manifest
from jaxmodels.runtime.tensorstore import as_full_disk
from jaxmodels.runtime.finite import NotFinite, not_finite_message, not_finite
from jaxmodels.runtime.runs.rundir import jump_checkpoints, best, identity, refuse_changed, steps
from jaxmodels.runtime.runs.sound import claim, newest_sound, set_aside, skipped_messages, unsound
from jaxmodels.runtime.step import State
from jaxmodels.runtime.runs.state_io import Restored, restore, snapshot, write


class Checkpoints:
    """Writes checkpoints in the background; keeps the newest few, the best, those at jumps.

    Only sound ones count as kept. Those that this call wrote or resumed from are; others are hashed
    once, in the thread that saves, before they are kept. Damaged ones are renamed, never removed.

    Args:
        folder: the run's `checkpoints` folder.
        keep: newest checkpoints to keep, besides the best by validation loss.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder.absolute(), keep  # Orbax takes no relative paths
        self.seconds = 0.0
        """Duration of the last save, from call to commit."""
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._saves = 0
        self._run = identity(self.folder.parent)
        self._sound: set[int] = set()
        if processes.is_primary():
            make_folder(self.folder)
            for left in self.folder.glob(".[0-9]*.*"):  # left by killed calls
                replaced = left.suffix == ".old"  # its successor may not have been renamed
                name = self.folder / left.name.split(".")[1]
                if replaced and not os.path.lexists(name):
                    left.rename(name)
                elif (replaced or left.suffix == ".tmp") and left.is_dir():
                    _erase(left)

    def resume(self, abstract: State) -> Restored | None:
        """Restores the newest sound checkpoint; None if there are no checkpoints.

        Those skipped (damaged, renamed, not finite) are reported and set aside.

        Raises:
            Problem: (corrupt) none is sound, or the run's files are not those of the checkpoint.
        """
        skipped: dict[int, str] = {}
        while True:
            found = newest_sound(self.folder, skipped) if processes.is_primary() else None
            name = processes.broadcast(found and found.folder.name)
            if name is None:
                return None
            refuse_changed(self.folder / name)
            restored = restore(self.folder / name, abstract)
            if found is not None:
                found.release()
            if not (bad := not_finite(restored.state)):
                break
            skipped[int(name)] = not_finite_message(bad)
        self._sound.add(int(name))
        if processes.is_primary():
            for step, line in zip(skipped, skipped_messages(skipped), strict=True):
                say(line)
                self._set_aside(step)
        return restored

    def save(self, state: State, data: Any, metrics: dict[str, float]) -> None:
        """Starts saving; returns when the arrays are copied. Errors are raised by the next call.

        Raises:
            NotFinite: the state is not finite, and is not saved.
        """
        self.wait()
        step = int(state.step)
        if bad := not_finite(state):
            raise NotFinite(f"after step {step} {not_finite_message(bad)}", step)
        need = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        if shutil.disk_usage(self.folder).free < need:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
        self._pending = self._pool.submit(
            self._write, step, snapshot(state), data, metrics, time.monotonic()
        )

    def wait(self) -> None:
        """Waits until the last save is committed; raises its error."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _write(
        self, step: int, state: State, data: Any, metrics: dict[str, float], start: float
    ) -> None:
        self._saves += 1
        name = f"save {self._saves}"
        with self._temporary(step, name) as temporary:
            try:
                write(temporary, state, name)
            except Exception as error:
                raise as_full_disk(error, self.folder) from error
            processes.all_gather(name=f"{name}/written")
            if processes.is_primary():
                write_json(temporary / "data.json", data)
                manifest = {"step": step, "metrics": metrics, "finite": True, "run": self._run}
                write_manifest(temporary, manifest)
        if processes.is_primary():
            self._sound.add(step)
            self._prune(step)
        processes.all_gather(name=f"{name}/done")
        self.seconds = time.monotonic() - start

    @contextmanager
    def _temporary(self, step: int, name: str) -> Iterator[Path]:
        """The folder that all processes write into. Process 0 makes it, and renames it at last."""
        if not processes.is_primary():
            yield self.folder / processes.all_gather(name=f"{name}/folder")[0]
            return
        if step not in self._sound and os.path.lexists(self.folder / str(step)):
            say(f"{self.folder / str(step)} is not a sound checkpoint")
            self._set_aside(step)
        with atomic_folder(self.folder / str(step), force=True) as temporary:
            processes.all_gather(temporary.name, name=f"{name}/folder")
            yield temporary

    def _prune(self, written: int) -> None:
        """Removes all but the checkpoint just written, the newest `keep`, the best, and those at
        the newest jumps. One that is being read is left until after the next save."""
        while True:
            found = steps(self.folder)
            kept = {
                *found[-max(self.keep, 1) :],
                best(self.folder),
                *jump_checkpoints(self.folder),
                written,
            }
            bad = {step: wrong for step in found if step in kept and (wrong := self._wrong(step))}
            if not bad:
                break
            for step, wrong in bad.items():
                say(f"checkpoint {step} is damaged: {'; '.join(wrong[:3])}")
                self._set_aside(step)
        for step in found:
            if step not in kept:
                try:
                    self._remove(self.folder / str(step))
                except OSError as error:  # a checkpoint too many must not end the training
                    say(f"checkpoint {step} could not be removed: {error}")

    def _wrong(self, step: int) -> list[str]:
        """What is wrong with a checkpoint; one that is known to be sound is not read."""
        wrong = [] if step in self._sound else unsound(self.folder / str(step))
        if not wrong:
            self._sound.add(step)
        return wrong

    def _remove(self, checkpoint: Path) -> None:
        """Removes a checkpoint. It is hidden first: half of one would look damaged."""
        lock = claim(checkpoint)
        if lock is None and (checkpoint / MANIFEST).exists():
            return
        hidden = checkpoint.with_name(f".{checkpoint.name}.{secrets.token_hex(4)}.tmp")
        checkpoint.rename(hidden)
        _erase(hidden)
        if lock is not None:
            lock.close()

    def _set_aside(self, step: int) -> None:
        self._sound.discard(step)
        kept = set_aside(self.folder / str(step))
        say(f"it is kept as {kept}; remove it when you do not need it")


def _erase(folder: Path) -> None:
    """Removes a folder, or the link to one."""
    if folder.is_symlink():
        folder.unlink(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
