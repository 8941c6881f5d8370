"""Checkpoints that survive kills, full disks and flipped bits.

A checkpoint is a folder `checkpoints/<step>/`: `params/` (Orbax, nested by path), `train/`
(Orbax: optimiser, other state, step, PRNG key), `ema/` (Orbax, as `params/`; where an average of
the parameters is kept), `data.json` (position in the data) and
`manifest.json` with a sha256 of every file and what the run says of its model. It is written
under a temporary name and renamed when it is complete, so what has a number for a name was
complete; the manifest then finds what the disk got wrong. Orbax itself accepts flipped bits.
"""

import errno
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxmodels.cli import say
from jaxmodels.errors import Problem
from jaxmodels.runtime import processes
from jaxmodels.runtime.files import (
    MANIFEST,
    as_full_disk,
    make_folder,
    plain,
    read_json,
    whole_folder,
    write_json,
    write_manifest,
)
from jaxmodels.runtime.finite import NotFinite, are_not_finite, not_finite
from jaxmodels.runtime.paths import flatten, nest
from jaxmodels.runtime.rundir import around_jumps, best, identity, refuse_changed, steps
from jaxmodels.runtime.sound import claim, newest_sound, set_aside, told, unsound
from jaxmodels.runtime.step import State

_PLACE = re.compile(r"^[\d.]+")  # of a leaf: its number, and where it lies in optax's tuples
BLOCK = 2**20  # bytes of a block from which on it is stored on its own; Orbax warns of less


class Restored(NamedTuple):
    """What a checkpoint held."""

    state: State
    data: Any
    """Position of the data iterator, as its `get_state` gave it."""
    folder: Path


def restore(checkpoint: Path, abstract: State) -> Restored:
    """Reads a checkpoint into arrays placed as in `abstract` (shapes, dtypes, shardings).

    Raises:
        Problem: (corrupt) Orbax cannot read it into these shapes.
    """
    target = _train_tree(abstract)
    try:
        target["opt"] = _as_stored(checkpoint / "train", target["opt"])
        params = _read(checkpoint / "params", nest(abstract.params))
        train = _read(checkpoint / "train", target)
        ema = flatten(_read(checkpoint / "ema", nest(abstract.ema))) if abstract.ema else None
    except (ValueError, KeyError, OSError) as error:
        raise Problem(
            "a checkpoint cannot be read back",
            where=str(checkpoint),
            why=str(error).splitlines()[0],
            fix="was the model or the optimiser changed since? Resume with the same settings",
        ) from error
    data = json.loads((checkpoint / "data.json").read_text())
    opt = jax.tree.unflatten(
        jax.tree.structure(abstract.opt), [leaf for _, leaf in sorted(train["opt"].items())]
    )
    state = State(flatten(params), flatten(train["rest"]), opt, train["step"], train["key"], ema)
    return Restored(state, data, checkpoint)


def _as_stored(folder: Path, opt: dict[str, Any]) -> dict[str, Any]:
    """The optimiser's leaves under the names that they were saved with, if these differ only in
    the place in optax's nested tuples: that moves when clipping is turned on or off."""
    keys = [
        [part["key"] for part in leaf["key_metadata"]]
        for leaf in read_json(folder / "_METADATA")["tree_metadata"].values()
    ]
    stored = sorted(key[1] for key in keys if key[0] == "opt" and len(key) == 2)
    alike = [_PLACE.sub("", name) for name in stored] == [_PLACE.sub("", name) for name in opt]
    return dict(zip(stored, opt.values(), strict=True)) if alike else opt


def _read(folder: Path, abstract: Any) -> Any:
    with _orbax(f"read/{folder.name}") as reader:
        wanted = ocp.checkpoint_utils.construct_restore_args(abstract)
        args = ocp.args.PyTreeRestore(item=abstract, restore_args=wanted)
        return reader.restore(plain(folder), args=args)


def _saved(tree: Any) -> ocp.args.PyTreeSave:
    """What to write of a tree of arrays. Large ones of three axes and more are all blocks of a
    model, stored so that one block can be read on its own."""

    def how(leaf: Any) -> ocp.SaveArgs:
        if leaf.ndim < 3 or leaf.nbytes < BLOCK * leaf.shape[0]:
            return ocp.SaveArgs()
        return ocp.SaveArgs(chunk_byte_size=leaf.nbytes // leaf.shape[0], shard_axes=(0,))

    return ocp.args.PyTreeSave(tree, save_args=jax.tree.map(how, tree))


def _orbax(name: str) -> ocp.Checkpointer:
    """What reads or writes one folder, together with the other processes.

    Orbax's barriers would go through the devices, and so meet the training's own collectives in
    different order on different processes, unless it is told who takes part. `name` is theirs and
    used once.
    """
    options = ocp.options.MultiprocessingOptions()
    if processes.several():
        everybody = set(range(processes.count()))
        options = ocp.options.MultiprocessingOptions(0, everybody, f"jaxmodels/{name}")
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _on_host(leaf: Any) -> Any:
    """A copy in the host's memory, of no more than what lies on this process's devices."""
    if not processes.several():
        return np.array(leaf)
    return jax.device_put(leaf, leaf.sharding.with_memory_kind("pinned_host"))


def _train_tree(state: State) -> dict[str, Any]:
    """What is saved besides the parameters, with names that need no Python type to be read."""
    leaves = jax.tree.leaves_with_path(state.opt)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    opt = {
        f"{index:05d}.{name.replace('/', '.')}": leaf
        for index, (name, (_, leaf)) in enumerate(zip(names, leaves, strict=True))
    }
    return {"opt": opt, "rest": nest(state.rest), "step": state.step, "key": state.key}


class Checkpoints:
    """Writes checkpoints in the background; keeps the newest few, the best, those at jumps.

    Only sound ones count as kept. Those that this call wrote or went on from are; others are
    hashed once, when they would be kept, and what is damaged is renamed and never removed.

    Args:
        folder: the run's `checkpoints` folder.
        keep: newest checkpoints to keep, besides the best by validation loss.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder.absolute(), keep  # Orbax takes no relative paths
        self.seconds = 0.0
        """How long the last save took, from call to commit."""
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._saves = 0
        self._run = identity(self.folder.parent)
        self._sound: set[int] = set()
        if processes.first():
            make_folder(self.folder)
            for left in self.folder.glob(".[0-9]*.*"):  # what killed calls left
                if left.suffix in (".tmp", ".old") and left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)

    def resume(self, abstract: State) -> Restored | None:
        """The newest sound checkpoint, read; None when there is none at all.

        Those that it passes over (damaged, renamed, not finite) are said and set aside.

        Raises:
            Problem: (corrupt) none is sound, or the run's files are not those of the checkpoint.
        """
        passed: dict[int, str] = {}
        while True:
            found = newest_sound(self.folder, passed) if processes.first() else None
            name = processes.from_first(found and found.folder.name)
            if name is None:
                return None
            refuse_changed(self.folder / name)
            restored = restore(self.folder / name, abstract)
            if found is not None:
                found.release()
            if not (odd := not_finite(restored.state)):
                break
            passed[int(name)] = are_not_finite(odd)
        self._sound.add(int(name))
        if processes.first():
            for step, line in zip(passed, told(passed), strict=True):
                say(line)
                self._set_aside(step)
        return restored

    def save(self, state: State, data: Any, metrics: dict[str, float]) -> None:
        """Starts saving; returns when the arrays are copied. Errors come with the next call.

        Raises:
            NotFinite: the state is not, so it is not saved.
        """
        self.wait()
        step = int(state.step)
        if odd := not_finite(state):
            raise NotFinite(f"after step {step} {are_not_finite(odd)}", step)
        need = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        if shutil.disk_usage(self.folder).free < need:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
        snapshot = jax.block_until_ready(jax.tree.map(_on_host, state))
        self._pending = self._pool.submit(
            self._write, step, snapshot, data, metrics, time.monotonic()
        )

    def wait(self) -> None:
        """Returns when the last save is committed; raises what went wrong with it."""
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
                with _orbax(f"{name}/params") as writer:
                    writer.save(plain(temporary) / "params", args=_saved(nest(state.params)))
                if state.ema:
                    with _orbax(f"{name}/ema") as writer:
                        writer.save(plain(temporary) / "ema", args=_saved(nest(state.ema)))
                with _orbax(f"{name}/train") as writer:
                    writer.save(plain(temporary) / "train", args=_saved(_train_tree(state)))
            except Exception as error:
                raise as_full_disk(error, self.folder) from error
            processes.exchange(name=f"{name}/written")
            if processes.first():
                write_json(temporary / "data.json", data)
                manifest = {"step": step, "metrics": metrics, "finite": True, "run": self._run}
                write_manifest(temporary, manifest)
        if processes.first():
            self._sound.add(step)
            self._prune(step)
        processes.exchange(name=f"{name}/done")
        self.seconds = time.monotonic() - start

    @contextmanager
    def _temporary(self, step: int, name: str) -> Iterator[Path]:
        """The folder that all write into. Process 0 makes it, and gives it its name at the end."""
        if not processes.first():
            yield self.folder / processes.exchange(name=f"{name}/folder")[0]
            return
        if step not in self._sound and os.path.lexists(self.folder / str(step)):
            say(f"{self.folder / str(step)} is not a sound checkpoint")
            self._set_aside(step)
        with whole_folder(self.folder / str(step), force=True) as temporary:
            processes.exchange(temporary.name, name=f"{name}/folder")
            yield temporary

    def _prune(self, written: int) -> None:
        """Removes all but what was just written, the newest `keep`, the best, those of the newest
        jumps; nor what somebody reads, whose turn comes after the next save."""
        while True:
            found = steps(self.folder)
            kept = {
                *found[-max(self.keep, 1) :],
                best(self.folder),
                *around_jumps(self.folder),
                written,
            }
            odd = {step: wrong for step in found if step in kept and (wrong := self._wrong(step))}
            if not odd:
                break
            for step, wrong in odd.items():
                say(f"checkpoint {step} is damaged and does not count: {'; '.join(wrong[:3])}")
                self._set_aside(step)
        for step in found:
            if step not in kept:
                self._remove(self.folder / str(step))

    def _wrong(self, step: int) -> list[str]:
        """What is wrong with a checkpoint; of one that is known to be sound nothing is read."""
        wrong = [] if step in self._sound else unsound(self.folder / str(step))
        if not wrong:
            self._sound.add(step)
        return wrong

    def _remove(self, checkpoint: Path) -> None:
        """Removes a checkpoint, out of sight first: half of one would be taken for damage."""
        held = claim(checkpoint)
        if held is None and (checkpoint / MANIFEST).exists():
            return
        hidden = checkpoint.with_name(f".{checkpoint.name}.{secrets.token_hex(4)}.tmp")
        checkpoint.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
        if held is not None:
            held.close()

    def _set_aside(self, step: int) -> None:
        self._sound.discard(step)
        kept = set_aside(self.folder / str(step))
        say(f"it is kept as {kept}; remove it when you do not need it")
