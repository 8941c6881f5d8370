"""A training state in a folder, as Orbax stores it, and back."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxmodels.errors import Problem
from jaxmodels.runtime.multihost import processes
from jaxmodels.runtime.files import plain, read_json
from jaxmodels.runtime.paths import flatten, nest
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


def write(folder: Path, state: State, name: str) -> None:
    """Writes a state into a folder, together with the other processes.

    Args:
        folder: where `params/`, `train/` and, if an average is kept, `ema/` come to lie.
        state: as `snapshot` gives it.
        name: of this save, the same in all processes and used once.
    """
    trees = {"params": nest(state.params), "train": _train_tree(state)}
    trees |= {"ema": nest(state.ema)} if state.ema else {}
    for part, tree in trees.items():
        with _orbax(f"{name}/{part}") as writer:
            writer.save(plain(folder) / part, args=_saved(tree))


def snapshot(state: State) -> State:
    """A copy in the host's memory, which training on does not change."""
    copy: State = jax.block_until_ready(jax.tree.map(_on_host, state))
    return copy


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
    return {"opt": opt, "rest": nest(state.model_state), "step": state.step, "key": state.key}
