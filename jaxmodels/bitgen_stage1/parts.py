"""Layers and helpers that several modules of the model share."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

from jaxmodels.layers.dropout import dropout
from jaxmodels.layers.linear import Linear

EPS = 1e-5  # of every LayerNorm, except in the tower

_INIT = nnx.initializers.normal(0.02)


def linear(fan_in: int, fan_out: int, *, rngs: nnx.Rngs) -> Linear:
    """A linear layer initialised as in the seed: weights N(0, 0.02²), zero bias."""
    return Linear(fan_in, fan_out, kernel_init=_INIT, rngs=rngs)


def embedding(rows: int, dim: int, *, rngs: nnx.Rngs) -> nnx.Embed:
    """An embedding initialised as in the seed: N(0, 0.02²)."""
    return nnx.Embed(rows, dim, embedding_init=_INIT, rngs=rngs)


def norm(dim: int, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A LayerNorm that computes the variance in two passes, as PyTorch does."""
    return nnx.LayerNorm(dim, epsilon=EPS, use_fast_variance=False, rngs=rngs)


def apply(layer: nnx.Linear, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
    """layer(x), computed in the dtype of the layer's kernel."""
    return layer(x.astype(layer.kernel[...].dtype))


def drop(x: Float[Array, "*s"], rate: float, rngs: nnx.Rngs | None) -> Float[Array, "*s"]:
    """x with dropout, if there are rngs."""
    return x if rngs is None else dropout(x, rate, rngs.dropout())


def unit(x: Float[Array, "*b d"], least: float) -> Float[Array, "*b d"]:
    """x / max(‖x‖, least), row by row."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    # The gradient of the root is infinite at 0: rows of zeros stay zero and get none.
    length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return x / jnp.maximum(length, least)


def no_gradient(x: Shaped[Array, "*s"]) -> Shaped[Array, "*s"]:
    """x, treated as a constant by differentiation."""
    return jax.lax.stop_gradient(x)
