"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def angles(positions: Int[Array, "*b t"], width: int, base: float = 10_000.0) -> Array:
    """Angles `position · base^(-2j/width)`, float32 [*b, t, width/2]."""
    rate = base ** -(jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    return positions[..., None].astype(jnp.float32) * rate


def rotate_interleaved(
    x: Float[Array, "b t h k"], angle: Float[Array, "*b t k2"]
) -> Float[Array, "b t h k"]:
    """Turns the pairs (x0, x1), (x2, x3), … of every head by `angle`; keeps the dtype of x."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    cos, sin = jnp.cos(angle)[..., None, :], jnp.sin(angle)[..., None, :]
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
