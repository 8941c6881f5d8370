"""Reads and writes Orbax checkpoints of a tree of arrays, one array at a time.

Arrays are named by their place in the tree, joined with dots: `layers.0.attn.qkv.kernel`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bridge.tensors import Fingerprint, Tensor, fingerprint
from jaxmodels.errors import CORRUPT, Problem
from jaxmodels.runtime.files import as_full_disk, read_json
from jaxmodels.runtime.paths import nest

METADATA = "_METADATA"


def read_tree(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The arrays of a checkpoint, unread, and notes on what was left aside.

    A last level named `value`, which nnx states of some versions have, is dropped from all
    names when all have it. Leaves that are no arrays (strings, None) are left aside.

    Raises:
        Problem: (corrupt) Orbax cannot read the folder's metadata.
    """
    import jax
    import orbax.checkpoint as ocp

    try:
        checkpointer = ocp.PyTreeCheckpointer()
        metadata = checkpointer.metadata(folder.absolute()).item_metadata
        if metadata is None:  # Orbax logs why, and raises nothing
            raise ValueError("what it says of its arrays cannot be read")
        tree = metadata.tree
    except Exception as error:
        raise _unreadable(folder, error) from error
    tensors, notes = {}, []
    for key_path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        keys = tuple(str(getattr(key, "key", getattr(key, "idx", key))) for key in key_path)
        name, shape = ".".join(keys), getattr(leaf, "shape", None)
        if shape is None or getattr(leaf, "dtype", None) is None:
            notes.append(f"left aside: {name}, which is no array")
            continue
        dtype = np.dtype(leaf.dtype)
        read = Stored(checkpointer, folder, keys, tuple(shape), dtype)
        tensors[name] = Tensor(name, tuple(shape), dtype, read)
    return _without_value(tensors, notes)


def write_tree(
    folder: Path, tensors: list[Tensor], progress: Callable[[Tensor], None] = lambda _: None
) -> dict[str, Fingerprint]:
    """Writes tensors as one Orbax checkpoint, nested at the dots of their names, one at a time.

    Returns:
        tensor name → {"dtype", "shape", digest}.
    """
    import jax
    import orbax.checkpoint as ocp
    from orbax.checkpoint import type_handlers

    digests: dict[str, Fingerprint] = {}

    class Handler(type_handlers.NumpyHandler):
        """Reads each array when its turn comes, and waits until it is written."""

        async def serialize(self, values: Any, infos: Any, args: Any = None) -> list[Any]:
            for i, (leaf, info) in enumerate(zip(values, infos, strict=True)):
                array = np.asarray(leaf.tensor.read(), order="C")  # keeps scalars without axes
                digests[leaf.tensor.name] = fingerprint(array)
                for begun in await super().serialize([array], [info], args and [args[i]]):
                    begun.result()
                progress(leaf.tensor)
            return []

        def memory_size(self, values: Any) -> list[tuple[int, int]]:
            return [(leaf.tensor.nbytes, leaf.tensor.nbytes) for leaf in values]

    registry = type_handlers.create_type_handler_registry(
        (_Leaf, Handler()),
        (jax.Array, type_handlers.ArrayHandler()),  # there is none; Orbax warns without
    )
    flat = {tensor.name.replace(".", "/"): _Leaf(tensor) for tensor in tensors}
    # Orbax writes beside its target first: a place inside the folder, so that nothing is left
    # outside when it fails.
    inner = folder.absolute() / "tree"
    try:
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(inner, args=ocp.args.PyTreeSave(nest(flat)))
    except ValueError as error:
        raise as_full_disk(error, folder) from error
    for path in list(inner.iterdir()):
        path.rename(folder / path.name)
    inner.rmdir()
    return digests


class _Leaf:
    """A tensor that Orbax takes for one leaf of the tree."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor
        self.shape, self.dtype, self.ndim = tensor.shape, tensor.dtype, len(tensor.shape)
        self.size, self.nbytes = tensor.size, tensor.nbytes


def _without_value(
    tensors: dict[str, Tensor], notes: list[str]
) -> tuple[dict[str, Tensor], list[str]]:
    if not tensors or not all(name.endswith(".value") for name in tensors):
        return tensors, notes
    short = [(name.removesuffix(".value"), tensor) for name, tensor in tensors.items()]
    notes.append("names ended in `.value`, an nnx state saved whole: that level was dropped")
    return {n: Tensor(n, t.shape, t.dtype, t.read) for n, t in short}, notes


@dataclass(frozen=True)
class Stored:
    """How one array of a checkpoint is read: whole, or one row of its first axis."""

    checkpointer: Any
    folder: Path
    keys: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype

    def __call__(self) -> np.ndarray:
        """The whole array."""
        import orbax.checkpoint as ocp

        item: Any = 0
        restore: Any = ocp.RestoreArgs(restore_type=np.ndarray)
        for key in reversed(self.keys):
            item, restore = {key: item}, {key: restore}
        args = ocp.args.PyTreeRestore(item=item, restore_args=restore, partial_restore=True)
        with self._telling():
            found = self.checkpointer.restore(self.folder.absolute(), args=args)
            for key in self.keys:
                found = found[key]
        return self._sound(np.asarray(found), self.shape)

    def row(self, i: int) -> np.ndarray:
        """Row `i`, in a checkpoint that `in_rows`."""
        with self._telling():
            array = self._store[i].read().result()
        return self._sound(array, self.shape[1:])

    @cached_property
    def in_rows(self) -> bool:
        """Whether the rows are stored one by one, as runs do with stacked blocks that are large."""
        try:
            return self._store.chunk_layout.read_chunk.shape[0] == 1 and self.shape[0] > 1
        except Exception:  # stored otherwise, or damaged, of which reading the whole tells
            return False

    @cached_property
    def _store(self) -> Any:
        import tensorstore

        # As Orbax's default is; whatever else it can write is read whole.
        place = {"driver": "ocdbt", "base": self.folder.absolute().as_uri()}
        kvstore = place | {"path": ".".join(self.keys) + "/"}
        return tensorstore.open({"driver": "zarr", "kvstore": kvstore}, open=True).result()

    def _sound(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if (array.shape, array.dtype) != (shape, self.dtype):
            found = ValueError(f"{array.shape} {array.dtype}")
            raise _unreadable(self.folder, found, ".".join(self.keys))
        return array

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise _unreadable(self.folder, error, ".".join(self.keys)) from error


def _unreadable(folder: Path, error: Exception, name: str = "") -> Problem:
    return Problem(
        "the Orbax checkpoint cannot be read",
        where=f"{folder}: {name}" if name else str(folder),
        why=f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}",
        fix="it is damaged or incomplete: take another checkpoint or fetch it again",
        exit_code=CORRUPT,
    )


def is_tree(folder: Path) -> bool:
    """Whether a folder is an Orbax checkpoint of a tree: its metadata lists named arrays."""
    try:
        return "tree_metadata" in read_json(folder / METADATA)
    except (OSError, ValueError):
        return False
