"""Normalisation in float32, whatever the precision of the products around it."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxmodels.layers.linear import for_rows
from jaxmodels.layers.precision import exact


def dtype_behind(norm: Any, weights: Array) -> jnp.dtype:
    """What products of a norm's output with weights are in: 16 bits only where both have them."""
    return jnp.result_type(norm.scale[...], weights)


def layer_norm(norm: nnx.LayerNorm | nnx.RMSNorm, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """`norm(x)` in the dtype of its parameters, which is that of the products that follow.

    Args:
        norm: flax's module; its parameters' gradients are those of `for_rows`.
        x: rows of numbers; the residual stream is always float32.
    """
    assert norm.scale is not None
    x = exact(x)
    scale, bias = norm.scale[...], getattr(norm, "bias", None)
    mean = x.mean(axis=-1, keepdims=True) if isinstance(norm, nnx.LayerNorm) else 0.0
    centred = x - mean
    if norm.use_fast_variance:
        squares = jnp.square(x).mean(axis=-1, keepdims=True)
        variance = jnp.maximum(squares - jnp.square(mean), 0.0)
    else:
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    root = jax.lax.rsqrt(variance + norm.epsilon)
    out = centred * (root * for_rows(exact(scale), x.shape))
    if bias is not None:
        out = out + for_rows(exact(bias[...]), x.shape)
    return out.astype(scale.dtype)
