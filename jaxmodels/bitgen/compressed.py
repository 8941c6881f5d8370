"""A bitgen as a packed checkpoint holds it: ternary weights of 2 bits, tower and embeddings of 8.

It computes with these numbers as they are; only what a product needs becomes floating-point, for as
long as it takes.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxmodels.bitgen.bitlinear import Packed, pack
from jaxmodels.bitgen.layout import INT8


class Int8(nnx.Module):
    """A parameter of 8 bits in the place of a floating-point one, read as it: `kernel[...]`.

    Its numbers are `values` · `scale`: int8 of the parameter's shape, and float32 that has 1 where
    a scale is shared.
    """

    def __init__(self, shape: tuple[int, ...], scales: tuple[int, ...]):
        self.values = Packed(jnp.zeros(shape, jnp.int8))
        self.scale = Packed(jnp.zeros(scales))

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's."""
        return self.values[...].shape

    def __getitem__(self, key: Any) -> Array:
        """The numbers, in the dtype of the scale."""
        scale = self.scale[...]
        if key is Ellipsis:
            return self.values[...].astype(scale.dtype) * scale
        # Rows of a table: only these become floating-point.
        rows = jnp.broadcast_to(scale, self.shape)[key]
        return self.values[...][key].astype(scale.dtype) * rows


def compress(model: Any) -> Any:
    """The structure of a packed model: `pack`, and `Int8` without values for the paths of INT8.

    Args:
        model: a model, whose ternary layers are packed.
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
    """The shape of the scales of a parameter: of a kernel one for each output, which is its last
    axis, else one for each row."""
    return (*(1 for _ in shape[:-1]), shape[-1]) if kernel else (*shape[:-1], 1)


def _is_int8(path: str) -> bool:
    return any(_fits(path, pattern) for pattern in INT8)


def _fits(path: str, pattern: str) -> bool:
    before, _, after = pattern.partition("*")
    if "*" not in pattern:
        return path == pattern
    return path.startswith(before) and path.endswith(after)
