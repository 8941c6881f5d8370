"""Where arrays live: a mesh (data, model) and the path rules of each model's layout table.

Models carry no sharding. A row (path pattern, PartitionSpec) places a parameter; optimiser moments
follow their parameter; batches are split over the data axis. A mesh axis that does not divide its
dimension (a vocabulary of 50,257 on 2 devices) never refuses the model: it splits another
dimension, or none. Heads that the model axis does not divide are refused, since every device would
compute all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache, wraps
from math import gcd, prod
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmodels.architecture import ConfigView
from jaxmodels.errors import USAGE, Problem
from jaxmodels.runtime.paths import match

AXES = ("data", "model")

# An abstract mesh has no devices, and suffices to compute shardings.
AnyMesh = Mesh | AbstractMesh


def make_mesh(spec: str = "", devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of "data=2,model=4" (see `mesh_sizes`).

    Args:
        spec: AXIS=SIZE, separated by commas.
        devices: by default all devices.

    Raises:
        Problem: (usage) the spec cannot be read or does not use every device.
    """
    count = jax.device_count() if devices is None else len(devices)
    processes = jax.process_count()
    owner = f"a run of {processes} processes" if processes > 1 else "this machine"
    sizes = mesh_sizes(spec, count, owner)
    automatic = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=automatic, devices=devices)


def mesh_sizes(spec: str, devices: int, owner: str = "this machine") -> dict[str, int]:
    """Axis → size of "data=2,model=4"; an unnamed axis has size 1.

    An empty spec puts all devices on the data axis.

    Raises:
        Problem: (usage) the spec cannot be read or does not use every device of the owner.
    """
    sizes = {"data": devices, "model": 1}
    if spec:
        sizes = {"data": 1, "model": 1}
        for part in spec.split(","):
            name, _, size = part.partition("=")
            if name.strip() not in AXES or not size.strip().isdigit() or int(size) < 1:
                raise Problem(
                    f"invalid mesh: {spec!r}",
                    why=f"{part!r} is not AXIS=SIZE with an axis of {', '.join(AXES)}",
                    fix='write it like "data=2,model=4"',
                    exit_code=USAGE,
                )
            sizes[name.strip()] = int(size)
    if prod(sizes.values()) != devices:
        raise Problem(
            f"mesh {spec!r} has {prod(sizes.values())} devices, {owner} has {devices}",
            fix="choose sizes whose product is the number of devices; --mesh '' uses all of them",
            exit_code=USAGE,
        )
    return sizes


def head_counts(config: Any) -> tuple[int, ...]:
    """The head counts of every layer: of queries, of keys where they have fewer, and those of a
    Config inside of the Config."""
    view = ConfigView(config)
    own = view.heads_by_layer or (config.heads,)
    shared = () if view.kv_heads is None else (view.kv_heads,)
    parts = (getattr(config, field.name) for field in fields(config))
    return (*own, *shared, *(n for part in parts if is_dataclass(part) for n in head_counts(part)))


def check_heads(config: Any, size: int) -> None:
    """Refuses a model axis whose size does not divide the attention heads of every block.

    Raises:
        Problem: (usage) with the sizes that do. XLA would compute all heads on every device.
    """
    heads = head_counts(config)
    if all(count % size == 0 for count in heads):
        return
    shared = gcd(*heads)
    counts = " and ".join(map(str, sorted(set(heads))))
    raise Problem(
        f"{counts} attention heads cannot be split over {size} devices",
        why="the mesh's model axis splits attention by heads",
        fix="make the model axis of --mesh one of "
        + ", ".join(str(n) for n in range(1, shared + 1) if shared % n == 0),
        exit_code=USAGE,
    )


def check_rows(rows: int, parts: int) -> None:
    """Refuses a step's rows that do not divide evenly over the mesh's data axis.

    Raises:
        Problem: (usage) they do not.
    """
    if rows % parts:
        raise Problem(
            f"{rows} sequences cannot be split over {parts} devices",
            fix=f"make --batch (times --accum) a multiple of {parts}, or give another --mesh",
            exit_code=USAGE,
        )


def param_shardings(mesh: AnyMesh, rows: tuple[tuple[str, P], ...], shapes: dict[str, Any]) -> Any:
    """Path → NamedSharding for every parameter.

    An axis that does not divide its dimension splits another dimension that it divides; if there
    is none, the parameter is replicated over it.
    """

    def place(path: str, shape: tuple[int, ...]) -> NamedSharding:
        axes: list[tuple[str, ...]] = [() for _ in shape]

        def fits(axis: str, at: int) -> bool:
            return shape[at] % prod(mesh.shape[name] for name in (*axes[at], axis)) == 0

        left = []
        for at, spec in enumerate(match(rows, path)[: len(shape)]):
            for axis in spec if isinstance(spec, tuple) else (spec,):
                if axis is not None and fits(axis, at):
                    axes[at] += (axis,)
                elif axis is not None:
                    left.append(axis)
        for axis in left:
            for at in [at for at in range(len(shape)) if fits(axis, at)][:1]:
                axes[at] += (axis,)
        names = (split[0] if len(split) == 1 else split or None for split in axes)
        return NamedSharding(mesh, P(*names))

    return {path: place(path, leaf.shape) for path, leaf in shapes.items()}


def tree_shardings(
    tree: Any, params: dict[str, Any], placed: dict[str, NamedSharding], mesh: AnyMesh
) -> Any:
    """Shardings of any pytree: a leaf whose key is a parameter's path is sharded like it.

    A leaf that lacks one axis of the parameter (adafactor's sums) is sharded along the others; a
    leaf of any other shape is replicated.

    Args:
        tree: the pytree.
        params: path → shape of every parameter.
        placed: path → sharding (`param_shardings`).
        mesh: the devices.
    """

    def one(path: Any, leaf: Any) -> NamedSharding:
        key = str(getattr(path[-1], "key", "")) if path else ""
        if key not in placed:
            return NamedSharding(mesh, P())
        shape, spec = params[key].shape, placed[key].spec
        if leaf.shape == shape:
            return placed[key]
        axes = [*spec, *(None for _ in shape[len(spec) :])]
        for gone in range(len(shape)):
            if leaf.shape == (*shape[:gone], *shape[gone + 1 :]):
                return NamedSharding(mesh, P(*axes[:gone], *axes[gone + 1 :]))
        return NamedSharding(mesh, P())

    return jax.tree.map_with_path(one, tree)


def with_mesh(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function traced with the mesh as context, where models find it (`layers/sharding.py`).

    The mesh becomes part of the program, so callers that lower or compile it need not set it.
    """

    @wraps(function)
    def traced(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def local_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """Indices of the rows of a batch on this process's devices, sorted: int [n]."""
    index = NamedSharding(mesh, P("data")).addressable_devices_indices_map((rows,))
    return np.unique([np.arange(rows)[part] for part in index.values()])


def put_batch(
    batch: dict[str, Any], mesh: Mesh, rows: int | None = None, *, wait: bool = False
) -> dict[str, jax.Array]:
    """A batch on the devices, its first axis split over the mesh's data axis.

    Args:
        batch: this process's rows (`local_rows`) of each array.
        mesh: the devices.
        rows: rows of the global batch; None if this process has all of them.
        wait: until the arrays are transferred. Otherwise a step that the caller should compute
            (`computes_inline`) runs in one of XLA's threads.
    """
    at = NamedSharding(mesh, P("data"))
    if not mesh.is_multi_process:
        placed = jax.device_put(batch, at)  # all arrays at once, in half of the time
    else:

        def put(part: np.ndarray) -> jax.Array:
            shape = (rows or len(part), *part.shape[1:])
            return jax.make_array_from_process_local_data(at, part, shape)

        placed = jax.tree.map(put, batch)
    return jax.block_until_ready(placed) if wait else placed


def put_global(batch: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """As `put_batch`, of a batch that every process has in full; replicated if it does not
    divide."""

    def put(array: np.ndarray) -> jax.Array:
        spec = P("data") if array.shape[0] % mesh.shape["data"] == 0 else P()
        return jax.make_array_from_callback(
            array.shape, NamedSharding(mesh, spec), array.__getitem__
        )

    return jax.tree.map(put, batch)


def put_flag(flag: int, mesh: Mesh) -> jax.Array:
    """int32 [devices]: each process's number, on each of its devices."""
    local = np.full(jax.local_device_count(), flag, np.int32)
    at = NamedSharding(mesh, P(AXES))
    return jax.make_array_from_process_local_data(at, local, (mesh.size,))


def fetch(array: Any) -> np.ndarray:
    """The values of an array on the host, also if other processes' devices hold parts of it."""
    at = array.sharding
    if isinstance(at, NamedSharding) and not at.is_fully_addressable and not at.is_fully_replicated:
        array = _gather(NamedSharding(at.mesh, P()))(array)
    return np.asarray(array)


@cache
def _gather(at: NamedSharding) -> Any:
    return jax.jit(lambda array: array, out_shardings=at)
