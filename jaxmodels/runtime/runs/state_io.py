"""Writes a training state into a folder with Orbax, and restores it."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxmodels.errors import Problem
from jaxmodels.runtime.multihost import processes
from jaxmodels.reading import read_json
from jaxmodels.runtime.tensorstore import orbax_path
from jaxmodels.runtime.paths import flatten, nest
from jaxmodels.runtime.step import State

_PLACE = re.compile(r"^[\d.]+")  # a leaf's number and its position in optax's tuples
BLOCK = 2**20  # bytes from which on a block is a chunk of its own; Orbax warns of smaller ones


class Restored(NamedTuple):
    """The content of a checkpoint."""

    state: State
    data: Any
    """Position of the data iterator, by its `get_state`."""
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
            "a checkpoint cannot be restored",
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
        folder: gets `params/`, `train/` and, if an average is kept, `ema/`.
        state: by `snapshot`.
        name: of this save, the same in all processes and used once.
    """
    trees = {"params": nest(state.params), "train": _train_tree(state)}
    trees |= {"ema": nest(state.ema)} if state.ema else {}
    for part, tree in trees.items():
        with _orbax(f"{name}/{part}") as writer:
            writer.save(orbax_path(folder) / part, args=_saved(tree))


def snapshot(state: State) -> State:
    """A copy in host memory, unaffected by further training."""
    copy: State = jax.block_until_ready(jax.tree.map(_on_host, state))
    return copy


def _as_stored(folder: Path, opt: dict[str, Any]) -> dict[str, Any]:
    """The optimiser's leaves under the names in the checkpoint, if these differ only in the
    position in optax's nested tuples, which changes when clipping is turned on or off."""
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
        return reader.restore(orbax_path(folder), args=args)


def _saved(tree: Any) -> ocp.args.PyTreeSave:
    """How to save a tree of arrays: large ones with three axes or more are stacked blocks, chunked
    so that each block can be read alone."""

    def how(leaf: Any) -> ocp.SaveArgs:
        if leaf.ndim < 3 or leaf.nbytes < BLOCK * leaf.shape[0]:
            return ocp.SaveArgs()
        return ocp.SaveArgs(chunk_byte_size=leaf.nbytes // leaf.shape[0], shard_axes=(0,))

    return ocp.args.PyTreeSave(tree, save_args=jax.tree.map(how, tree))


def _orbax(name: str) -> ocp.Checkpointer:
    """A checkpointer for one folder, used by all processes together.

    Without a list of the processes Orbax's barriers would be collectives on the devices, and mix
    with the training's in different orders. `name` is the barriers' and used once.
    """
    options = ocp.options.MultiprocessingOptions()
    if processes.several():
        everybody = set(range(processes.count()))
        options = ocp.options.MultiprocessingOptions(0, everybody, f"jaxmodels/{name}")
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _on_host(leaf: Any) -> Any:
    """A copy in host memory of this process's shards."""
    if not processes.several():
        return np.array(leaf)
    return jax.device_put(leaf, leaf.sharding.with_memory_kind("pinned_host"))


def _train_tree(state: State) -> dict[str, Any]:
    """The state besides the parameters, with names that can be read without Python types."""
    leaves = jax.tree.leaves_with_path(state.opt)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    opt = {
        f"{index:05d}.{name.replace('/', '.')}": leaf
        for index, (name, (_, leaf)) in enumerate(zip(names, leaves, strict=True))
    }
    return {"opt": opt, "rest": nest(state.model_state), "step": state.step, "key": state.key}
