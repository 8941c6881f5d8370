"""At least single precision."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


def exact(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """The same in float32; float64 stays what it is."""
    return x.astype(wide(x.dtype))


def wide(dtype: Any) -> Any:
    """The dtype that products of this one are summed in: float32, or float64."""
    return jnp.promote_types(dtype, jnp.float32)
