"""Normalisation in float32, whatever the precision of the products around it.

wikigpt's norms take the variance from differences, not E[x²] − E[x]²: GPT-2's residual stream has a
few numbers in the thousands.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxmodels.layers.linear import broadcast_param
from jaxmodels.layers.precision import to_float32
from jaxmodels.layers.target import platform


def dtype_behind(norm: Any, weights: Array) -> jnp.dtype:
    """The dtype of products of a norm's output with weights: 16 bits only where both have 16."""
    return jnp.result_type(norm.scale[...], weights)


def layer_norm(norm: nnx.LayerNorm | nnx.RMSNorm, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """`norm(x)` in the dtype of its parameters, which is that of the products that follow.

    Args:
        norm: flax's module; its parameters' gradients are those of `broadcast_param`.
        x: rows of numbers; the residual stream is always float32.
    """
    assert norm.scale is not None
    x = to_float32(x)
    scale, bias = norm.scale[...], getattr(norm, "bias", None)
    kind = norm.epsilon, isinstance(norm, nnx.LayerNorm), norm.use_fast_variance
    each = broadcast_param(to_float32(scale), x.shape)
    if platform() == "cpu":
        centred, root = _measured(x, *kind)
        out = centred * (root * each)
    else:
        out = normalised(x, *kind) * each
    if bias is not None:
        out = out + broadcast_param(to_float32(bias[...]), x.shape)
    return out.astype(scale.dtype)


def normalised(
    x: Float[Array, "*b d"], epsilon: float, centre: bool = False, fast: bool = True
) -> Float[Array, "*b d"]:
    """Rows divided by the root of their mean square plus epsilon.

    Args:
        x: rows of numbers.
        epsilon: is added to the mean of squares.
        centre: subtract a row's mean first.
        fast: take the variance as E[x²] − E[x]² instead of from differences.
    """
    if platform() != "cpu":
        return _in_one_pass(x, epsilon, centre, fast)
    centred, root = _measured(x, epsilon, centre, fast)
    return centred * root


def _measured(x: Array, epsilon: float, centre: bool, fast: bool) -> tuple[Array, Array]:
    """The rows without their means, and what they are multiplied by: [… d], [… 1]."""
    if not centre:
        return x, jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + epsilon)
    mean = x.mean(axis=-1, keepdims=True)
    centred = x - mean
    if fast:
        squares = jnp.square(x).mean(axis=-1, keepdims=True)
        variance = jnp.maximum(squares - jnp.square(mean), 0.0)
    else:
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred, jax.lax.rsqrt(variance + epsilon)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _in_one_pass(x: Array, epsilon: float, centre: bool, fast: bool) -> Array:
    """`normalised`, with a backward pass that reads the rows once for both of its sums.

    JAX's own reads them once for each.
    """
    centred, root = _measured(x, epsilon, centre, fast)
    return centred * root


def _forward(
    x: Array, epsilon: float, centre: bool, fast: bool
) -> tuple[Array, tuple[Array, Array]]:
    centred, root = _measured(x, epsilon, centre, fast)
    return centred * root, (centred, root)


def _backward(
    epsilon: float, centre: bool, fast: bool, kept: tuple[Array, Array], g: Array
) -> tuple[Array]:
    centred, root = kept
    out = centred * root
    along = (g * out).mean(axis=-1, keepdims=True)
    level = g.mean(axis=-1, keepdims=True) if centre else 0.0
    return (root * (g - level - out * along),)


_in_one_pass.defvjp(_forward, _backward)
