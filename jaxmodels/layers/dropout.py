"""Dropout that costs few random bits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def dropout(
    x: Float[Array, "*s"], rate: Float[Array, ""] | float, key: Key[Array, ""]
) -> Float[Array, "*s"]:
    """Zeroes elements of x with probability `rate` and scales the others by 1/(1 − rate).

    The rate may be traced. It is rounded to 1/65,536, because each element draws 16 random
    bits; the scale is that of the rounded rate, so the expected value stays exactly x.
    """
    keep = jnp.round((1 - jnp.asarray(rate, jnp.float32)) * 65_536)
    kept = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.float32) < keep
    return jnp.where(kept, x * (65_536 / keep).astype(x.dtype), 0)
