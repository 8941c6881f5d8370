"""Where activations lie, when a model runs on a mesh of devices.

Models name the axes of the mesh, as their layout tables do, and know nothing else of it. The mesh
is the ambient one, which the train step sets (`runtime/step.py`); without one nothing happens.

Weights travel and activations stay. Left to XLA, the gradient of a tied head was reduced for every
chunk of the loss, and q|k|v and w|v were sent around in each block, because the columns of a part
are not where its heads are; the kernel is brought there instead (`heads`).
"""

from math import prod
from typing import Any

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Shaped


def constrain(x: Shaped[Array, "..."], *axes: Any) -> Shaped[Array, "..."]:
    """The same array, its dimensions split over these axes of the mesh.

    For the activations between blocks, it makes XLA fetch the pieces of a weight when it is used
    (FSDP) instead of sending activations around.

    Args:
        x: an activation.
        axes: the mesh's axis for each dimension, or None; `...` once, for all that are not named.
            An axis that does not divide its dimension counts as None.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if prod(mesh.axis_sizes) == 1:
        return x
    if ... in axes:
        at = axes.index(...)
        axes = (*axes[:at], *(None,) * (x.ndim + 1 - len(axes)), *axes[at + 1 :])
    return jax.lax.with_sharding_constraint(x, dividing(x.shape, axes))


def axis_size(axis: str) -> int:
    """The number of devices along this axis of the ambient mesh; 1 without a mesh."""
    return int(dict(jax.sharding.get_abstract_mesh().shape).get(axis, 1))


def dividing(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> P:
    """The spec of these axes of the ambient mesh, without those that do not divide."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    pairs = zip(shape, axes, strict=True)
    return P(*(axis if size % sizes.get(axis, size + 1) == 0 else None for size, axis in pairs))
