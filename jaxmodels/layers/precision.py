"""At least single precision."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


def to_float32(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """The same in float32; float64 stays what it is."""
    return x.astype(accum_dtype(x.dtype))


def accum_dtype(dtype: Any) -> Any:
    """The dtype that products of this one are summed in: float32, or float64."""
    return jnp.promote_types(dtype, jnp.float32)
