"""Linear layers whose columns are several parts, or the heads of attention.

CPUs and GPUs multiply once and cut the result. A TPU stores the last two axes of an array in tiles
of 8 × 128 numbers, so that cutting copies. There every part has a product of its own, straight into
its heads.
"""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from jaxmodels.layers.linear import broadcast_param
from jaxmodels.layers.rotary import Rope, partners, rotate, turned, turned_rows
from jaxmodels.layers.sharding import axis_size, constrain
from jaxmodels.layers.target import platform

Heads = Float[Array, "b t h k"]

# Of a TPU's 128 lanes. Half as wide ones lose less by it than by being written once more.
NARROW = 64


def fused_linear(
    linear: nnx.Linear, x: Float[Array, "b t d"], parts: int
) -> tuple[Float[Array, "b t f"], ...]:
    """`linear(x)` in parts, whose columns lie one part after the other."""
    if platform() != "tpu":
        return tuple(_cut(linear, x, parts))
    kernels, biases = _parts(linear, parts)
    products = (x @ constrain(kernel, "data", "model") for kernel in kernels)
    return tuple(_added(out, bias) for out, bias in zip(products, biases, strict=True))


def heads_of(
    linear: nnx.Linear, x: Float[Array, "b t d"], heads: int, rope: Rope | None = None
) -> Heads:
    """`linear(x)` cut into heads, their pairs turned if there is a rotation."""
    if platform() != "tpu":
        return _turned(rearrange(linear(x), "b t (h k) -> b t h k", h=heads), rope)
    (kernel,), (bias,) = _parts(linear, 1)
    return _into_heads(x, kernel, bias, heads, rope)


def qkv_heads(
    linear: nnx.Linear, x: Float[Array, "b t d"], heads: int, rope: Rope | None = None
) -> tuple[Heads, Heads, Heads]:
    """Queries, keys and values from one kernel, cut into heads; a rotation turns the first two."""
    if platform() != "tpu":
        cut = rearrange(_cut(linear, x, 3), "n b t (h k) -> n b t h k", h=heads)
        return _turned(cut[0], rope), _turned(cut[1], rope), cut[2]
    q, k, v = zip(*_parts(linear, 3), strict=True)
    return (
        _into_heads(x, *q, heads, rope),
        _into_heads(x, *k, heads, rope),
        _into_heads(x, *v, heads, None),
    )


def join_heads(linear: nnx.Linear, x: Heads) -> Float[Array, "b t d"]:
    """`linear` of the results of all heads."""
    if platform() != "tpu":
        return linear(rearrange(x, "b t h k -> b t (h k)"))
    bias = None if linear.bias is None else linear.bias[...]
    if x.shape[-1] < NARROW:
        return _added(_rows(x) @ linear.kernel[...], bias)
    kernel = rearrange(linear.kernel[...], "(h k) d -> h k d", h=x.shape[2])
    return _added(jnp.einsum("bthk,hkd->btd", x, kernel), bias)


def _into_heads(
    x: Array, kernel: Array, bias: Array | None, heads: int, rope: Rope | None
) -> Array:
    if kernel.shape[1] < NARROW * heads:
        out = _added(x @ constrain(kernel, "data", "model"), bias)
        if rope is not None:
            out = turned_rows(out, rope, heads)
        return _narrow(out, heads)
    kernel = rearrange(kernel, "d (h k) -> d h k", h=heads)
    bias = None if bias is None else rearrange(bias, "(h k) -> h k", h=heads)

    def product(kernel: Array, bias: Array | None) -> Array:
        kernel = constrain(kernel, "data", "model", None)
        return _added(jnp.einsum("btd,dhk->bthk", x, kernel), bias)

    out = product(kernel, bias)
    if rope is None:
        return out
    # The other number of each pair comes from a product too: none moves within a tile.
    other = product(partners(kernel, rope), None if bias is None else partners(bias, rope))
    return turned(out, other, rope)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _narrow(x: Float[Array, "b t f"], heads: int) -> Heads:
    """Rows cut into heads that do not fill a tile's lanes, laid out as attention's kernel reads
    them, positions last; written to memory once, and so is their gradient, as whole rows."""
    x = _written(x.swapaxes(1, 2))
    return rearrange(x, "b (h k) t -> b t h k", h=heads)


def _narrow_forward(x: Array, heads: int) -> tuple[Array, None]:
    return _narrow(x, heads), None


def _narrow_backward(heads: int, _: None, g: Array) -> tuple[Array]:
    return (_rows(g),)


_narrow.defvjp(_narrow_forward, _narrow_backward)


def _rows(x: Heads) -> Float[Array, "b t f"]:
    columns = _written(rearrange(x, "b t h k -> b h k t"))
    return _written(rearrange(columns, "b h k t -> b t (h k)"))


def _written(x: Array) -> Array:
    """The array, its last axis along a tile's lanes; XLA would choose other layouts."""
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def _cut(linear: nnx.Linear, x: Array, parts: int) -> Array:
    """[parts b t f].

    On a mesh that splits columns, a part's columns are not on the devices that need them. The
    kernel is sent there, which is less than its products for all positions.
    """
    if axis_size("model") == 1:
        return rearrange(linear(x), "b t (n f) -> n b t f", n=parts)
    kernel = rearrange(linear.kernel[...], "d (n f) -> d n f", n=parts)
    out = jnp.einsum("btd,dnf->nbtf", x, constrain(kernel, "data", None, "model"))
    if linear.bias is not None:
        out = out + constrain(
            rearrange(linear.bias[...], "(n f) -> n 1 1 f", n=parts), ..., "model"
        )
    return out


def _parts(linear: nnx.Linear, parts: int) -> tuple[list[Array], list[Array | None]]:
    """Kernels [d f] and biases [f] of the parts."""
    kernels = jnp.split(linear.kernel[...], parts, axis=1)
    if linear.bias is None:
        return kernels, [None] * parts
    return kernels, list(jnp.split(linear.bias[...], parts))


def _added(out: Array, bias: Array | None) -> Array:
    return out if bias is None else out + broadcast_param(bias, out.shape)


def _turned(x: Array, rope: Rope | None) -> Array:
    return x if rope is None else rotate(x, rope)
