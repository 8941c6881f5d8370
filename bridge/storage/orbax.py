"""Reads and writes Orbax checkpoints of a tree of arrays, one array at a time.

Arrays are named by their place in the tree, joined with dots: `layers.0.attn.qkv.kernel`.

`--to orbax` writes the seed's names: who wants an Orbax folder wants it for the seed's code;
`bridge.load` reads both.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bridge.core.tensors import Fingerprint, Tensor, fingerprint
from jaxmodels.errors import CORRUPT, Problem
from jaxmodels.reading import MAX_JSON, read_json
from jaxmodels.runtime.paths import nest
from jaxmodels.runtime.tensorstore import as_full_disk, orbax_path

METADATA = "_METADATA"
VALUE = ".value"
# Files that say how arrays are stored, and are read whole.
_SMALL = {METADATA, "_sharding", "_CHECKPOINT_METADATA", "manifest.ocdbt", ".zarray", "zarr.json"}


def read_tree(folder: Path, held: Any = None) -> tuple[dict[str, Tensor], list[str]]:
    """The arrays of a checkpoint, unread, and notes on what was left aside.

    `held`, such as a lock, is kept as long as an array may be read.

    A last level named `value`, which nnx states have, is dropped where it stands alone. Leaves that
    are no arrays (strings, None) are left aside.

    Raises:
        Problem: (corrupt) Orbax cannot read the folder's metadata, or not every file is one.
    """
    _refuse_strange(folder)
    import jax
    import orbax.checkpoint as ocp

    try:
        metadata = ocp.PyTreeCheckpointHandler().metadata(orbax_path(folder))
        if metadata is None:  # Orbax logs why, and raises nothing
            raise ValueError("what it says of its arrays cannot be read")
        leaves = jax.tree_util.tree_flatten_with_path(metadata.tree)[0]
        layout = _Layout.of(folder, held)
    except Exception as error:
        raise _unreadable(folder, error) from error
    tensors, notes = {}, []
    for key_path, leaf in leaves:
        name = ".".join(str(_key(key)) for key in key_path)
        shape, dtype = getattr(leaf, "shape", None), _dtype(leaf)
        if shape is None or dtype is None:
            notes.append(f"left aside: {name}, which is not an array")
            continue
        stored = OrbaxArray(folder, name, tuple(shape), dtype, layout)
        # Some write flat dicts, whose keys are whole paths.
        tensors[name.replace("/", ".")] = Tensor(name, tuple(shape), dtype, stored)
    return _without_value(tensors, notes)


def _refuse_strange(folder: Path) -> None:
    """Refuses what Orbax's libraries would wait for, or read without end: they open any path."""
    for path in folder.rglob("*"):
        if not (path.is_file() or path.is_dir()):
            raise _unreadable(folder, ValueError("it is not a file"), str(path.relative_to(folder)))
        if path.name in _SMALL and path.stat().st_size > MAX_JSON:
            error = ValueError(f"it has more than {MAX_JSON:,} bytes")
            raise _unreadable(folder, error, str(path.relative_to(folder)))


def _key(key: Any) -> Any:
    """What a level of a tree is called: by a dict's key, a place in a list, a field's name."""
    return getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))


def _dtype(leaf: Any) -> np.dtype | None:
    try:
        return np.dtype(leaf.dtype)
    except (AttributeError, TypeError):  # none, or one of JAX's own, as of its random keys
        return None


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
            checkpointer.save(orbax_path(folder) / inner.name, args=ocp.args.PyTreeSave(nest(flat)))
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
    """The tensors without the last level of an nnx state: a `value` that has no siblings."""
    words = [name.split(".") for name in tensors]
    nodes = {tuple(keys[: i + 1]) for keys in words for i in range(len(keys))}
    children = Counter(".".join(node[:-1]) for node in nodes)
    short = {
        name: name.removesuffix(VALUE)
        if name.endswith(VALUE) and children[name.removesuffix(VALUE)] == 1
        else name
        for name in tensors
    }
    if any(name != old for old, name in short.items()):
        notes.append("names ended in `.value`, as an nnx state's do: that level was dropped")
    return {short[old]: replace(t, name=short[old]) for old, t in tensors.items()}, notes


@dataclass(frozen=True)
class _Layout:
    """How the arrays of a checkpoint are stored, as its metadata says."""

    driver: str
    """zarr or zarr3."""
    ocdbt: bool
    """Whether all arrays are in one database; else each has a folder."""
    complete: bool
    """Whether pieces that are zero are stored too, so that one that is not there is a damage."""
    held: Any = None
    """See `read_tree`."""

    @classmethod
    def of(cls, folder: Path, held: Any = None) -> "_Layout":
        metadata = read_json(folder / METADATA)
        driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
        # Earlier versions of Orbax did not say it; the database is there, or it is not.
        ocdbt = metadata.get("use_ocdbt", (folder / "manifest.ocdbt").is_file())
        return cls(driver, ocdbt, bool(metadata.get("store_array_data_equal_to_fill_value")), held)


@dataclass(frozen=True)
class OrbaxArray:
    """How one array of a checkpoint is read: whole, or one row of its first axis.

    The file is opened by its own name: Orbax restores a leaf by the structure of the whole tree,
    which may no longer be available (classes of optimisers, tuples).
    """

    folder: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    layout: _Layout

    def __call__(self) -> np.ndarray:
        """The whole array."""
        with self._as_problem():
            array = self._store.read().result()
        return self._sound(np.asarray(array), self.shape)

    def row(self, i: int) -> np.ndarray:
        """Row `i`, in a checkpoint that `in_rows`."""
        with self._as_problem():
            array = self._store[i].read().result()
        return self._sound(array, self.shape[1:])

    @cached_property
    def in_rows(self) -> bool:
        """Whether the rows are stored one by one, as runs do with stacked blocks that are large."""
        try:
            return self._store.chunk_layout.read_chunk.shape[0] == 1 and self.shape[0] > 1
        except Exception:  # damaged: reading all of it reports that
            return False

    @cached_property
    def _store(self) -> Any:
        import tensorstore

        place: dict[str, Any] = {
            "driver": "file",
            "path": f"{orbax_path(self.folder) / self.name}/",
        }
        if self.layout.ocdbt:
            base = orbax_path(self.folder).as_uri()
            place = {"driver": "ocdbt", "base": base, "path": f"{self.name}/"}
        spec: dict[str, Any] = {"driver": self.layout.driver, "kvstore": place}
        if self.layout.complete:
            spec["fill_missing_data_reads"] = False
        store = tensorstore.open(spec, open=True).result()
        layout = store.chunk_layout
        pieces = [layout.read_chunk.shape or (), layout.write_chunk.shape or ()]
        larger = [
            piece
            for piece in pieces
            if any((a or 0) > max(b, 1) for a, b in zip(piece, self.shape, strict=False))
        ]
        if store.shape != self.shape or larger:
            # A piece is held whole, however small it is in the file.
            how = f"in pieces of {larger[0]}" if larger else f"as {store.shape}"
            raise ValueError(f"it is stored {how}, and is {self.shape}")
        return store

    def _sound(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if (array.shape, array.dtype) != (shape, self.dtype):
            found = ValueError(f"{array.shape} {array.dtype}")
            raise _unreadable(self.folder, found, self.name)
        return array

    @contextmanager
    def _as_problem(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise _unreadable(self.folder, error, self.name) from error


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
