"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxmodels.layers.target import platform


class Rotation(NamedTuple):
    """How far each pair of a head's numbers is turned at each position."""

    cos: Float[Array, "*b t pairs"]
    sin: Float[Array, "*b t pairs"]


class HalfRotation(NamedTuple):
    """The same for pairs (x0, xn), (x1, xn+1), … where n is half of a head's width (Llama)."""

    cos: Float[Array, "*b t pairs"]
    sin: Float[Array, "*b t pairs"]


Rope = Rotation | HalfRotation


def rotation(positions: Int[Array, "*b t"], width: int, base: float = 10_000.0) -> Rotation:
    """Cosine and sine of the angles `position · base^(-2j/width)`, in float32.

    It turns interleaved pairs; `HalfRotation(*rotation(…))` turns those of split halves.
    """
    rate = base ** -(jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angle = positions[..., None].astype(jnp.float32) * rate
    return _once(angle) if platform() == "cpu" else _turns(angle)


def rotate(x: Float[Array, "b t h k"], by: Rope) -> Float[Array, "b t h k"]:
    """Turns the pairs of every head; keeps the dtype of x."""
    return (rotate_halves if isinstance(by, HalfRotation) else rotate_interleaved)(x, by)


def _turns(angle: Array) -> Rotation:
    return Rotation(jnp.cos(angle), jnp.sin(angle))


def _once(angle: Array) -> Rotation:
    """The same in a branch that is always taken, across which XLA does not fuse.

    Otherwise it would compute them again for every row, head and layer: on a CPU it drops an
    `optimization_barrier` before it fuses.
    """
    return jax.lax.cond(angle.ravel()[0] > -1, _turns, lambda x: Rotation(x, x), angle)


def rotate_interleaved(x: Float[Array, "b t h k"], by: Rope) -> Float[Array, "b t h k"]:
    """Turns the pairs (x0, x1), (x2, x3), … of every head; keeps the dtype of x."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    cos, sin = by.cos[..., None, :], by.sin[..., None, :]
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def rotate_halves(x: Float[Array, "b t h k"], by: Rope) -> Float[Array, "b t h k"]:
    """Turns the pairs (x0, xn), (x1, xn+1), … of every head; keeps the dtype of x."""
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = by.cos[..., None, :], by.sin[..., None, :]
    turned = [low * cos - high * sin, high * cos + low * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def partners(kernel: Float[Array, "*d k"], by: Rope) -> Float[Array, "*d k"]:
    """Columns that give the other number of each pair: −x1, x0, −x3, x2, … where interleaved."""
    if isinstance(by, HalfRotation):
        low, high = jnp.split(kernel, 2, axis=-1)
        return jnp.concatenate([-high, low], axis=-1)
    pairs = kernel.reshape(*kernel.shape[:-1], -1, 2)
    return jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(kernel.shape)


def turned(
    x: Float[Array, "b t h k"], other: Float[Array, "b t h k"], by: Rope
) -> Float[Array, "b t h k"]:
    """As `rotate`, of numbers and of their `partners`, place by place."""
    if isinstance(by, HalfRotation):
        cos, sin = (jnp.tile(angle, 2)[..., None, :] for angle in by)
    else:
        cos, sin = (jnp.repeat(angle, 2, axis=-1)[..., None, :] for angle in by)
    return (x.astype(jnp.float32) * cos + other.astype(jnp.float32) * sin).astype(x.dtype)


def turned_rows(x: Float[Array, "b t f"], by: Rope, heads: int) -> Float[Array, "b t f"]:
    """As `rotate`, of heads that lie one after the other in a row.

    The partners come by a product with ±1 and 0, which is exact: no number changes its place in
    a tile.
    """
    width = x.shape[-1] // heads
    swap = jnp.kron(jnp.eye(heads, dtype=x.dtype), partners(jnp.eye(width, dtype=x.dtype), by))
    other = x @ swap
    if isinstance(by, HalfRotation):
        cos, sin = (jnp.tile(angle, 2 * heads) for angle in by)
    else:
        cos, sin = (jnp.tile(jnp.repeat(angle, 2, axis=-1), heads) for angle in by)
    return (x.astype(jnp.float32) * cos + other.astype(jnp.float32) * sin).astype(x.dtype)
