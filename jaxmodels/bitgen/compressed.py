"""A bitgen in the form of a packed checkpoint: 2-bit ternary weights, 8-bit tower and embeddings.

Weights stay packed in memory; each is converted to floating point only while it is multiplied.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxmodels.bitgen.bitlinear import Packed, pack
from jaxmodels.bitgen.layout import INT8


class Int8(nnx.Module):
    """An 8-bit parameter that is read like the floating-point one it replaces: `kernel[...]`.

    It is `values` · `scale`: int8 of the parameter's shape, and float32 of the same rank, of
    size 1 along the axes that share a scale.
    """

    def __init__(self, shape: tuple[int, ...], scales: tuple[int, ...]):
        self.values = Packed(jnp.zeros(shape, jnp.int8))
        self.scale = Packed(jnp.zeros(scales))

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape."""
        return self.values[...].shape

    def __getitem__(self, key: Any) -> Array:
        """The dequantised values, in the dtype of the scale."""
        scale = self.scale[...]
        if key is Ellipsis:
            return self.values[...].astype(scale.dtype) * scale
        # Rows of a table: only these are dequantised.
        rows = jnp.broadcast_to(scale, self.shape)[key]
        return self.values[...][key].astype(scale.dtype) * rows


def compress(model: Any) -> Any:
    """The structure of a packed model: `pack`, with an `Int8` without values at each path of INT8.

    Args:
        model: a model with packed ternary layers.
    """
    packed = pack(model)
    for path, node in list(nnx.iter_graph(packed)):
        if not isinstance(node, nnx.Module):
            continue
        for name, child in list(vars(node).items()):
            if isinstance(child, nnx.Param) and _is_int8("/".join(map(str, (*path, name)))):
                shape = child[...].shape
                setattr(node, name, Int8(shape, scales(shape, name == "kernel")))
    return packed


def scales(shape: tuple[int, ...], kernel: bool) -> tuple[int, ...]:
    """The shape of a parameter's scales: for a kernel one for each output (its last axis), else
    one for each row."""
    return (*(1 for _ in shape[:-1]), shape[-1]) if kernel else (*shape[:-1], 1)


def _is_int8(path: str) -> bool:
    return any(_fits(path, pattern) for pattern in INT8)


def _fits(path: str, pattern: str) -> bool:
    before, _, after = pattern.partition("*")
    if "*" not in pattern:
        return path == pattern
    return path.startswith(before) and path.endswith(after)
