"""Dropout whose random bits cost next to nothing.

The mask is a hash of the element's index (two rounds of a 32-bit mixer with words of the key):
drawing it from threefry took 135 ms for 8 M elements, the hash, fused into its neighbours, about 4
ms. Its rate, its independence between keys, neighbours and axes, and its bits are tested.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt32


def dropout(
    x: Float[Array, "*s"], rate: Float[Array, ""] | float, key: Key[Array, ""]
) -> Float[Array, "*s"]:
    """Zeroes elements of x with probability `rate` and scales the others by 1/(1 − rate).

    The rate may be traced. The mask is a hash of the element's index and the key instead of a
    draw from JAX's generator: XLA fuses it into its neighbours and computes it again in the
    backward pass, where threefry takes longer than the matrix products around it on a CPU.
    """
    if isinstance(rate, float) and rate == 0:
        return x
    rate = jnp.asarray(rate, jnp.float32)
    kept = hash_bits(key, x.shape) >= (rate * 2.0**32).astype(jnp.uint32)
    return jnp.where(kept, x / (1 - rate).astype(x.dtype), 0)


def hash_bits(key: Key[Array, ""], shape: tuple[int, ...]) -> UInt32[Array, "*s"]:
    """32 random bits for each element: its index, mixed twice with words of the key."""
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    index = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return _mix(_mix(index ^ first) + second)


def _mix(x: UInt32[Array, "*s"]) -> UInt32[Array, "*s"]:
    """A bijection that changes half of the bits when one changes (lowbias32, C. Wellons)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
