"""Linear layers whose columns are several parts, or the heads of attention.

CPUs and GPUs multiply once and cut the result. A TPU stores the last two axes of an array in tiles
of 8 × 128 numbers, so that cutting copies. There every part has a product of its own, straight into
its heads. A kernel with an adapter (`low_rank`) is a sum of two products, whose columns are cut
alike.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from jaxmodels.layers.linear import broadcast_param, factors, total
from jaxmodels.layers.low_rank import parts as kernels_of
from jaxmodels.layers.rotary import Rope, partners, rotate, turned, turned_rows
from jaxmodels.layers.sharding import axis_size, constrain
from jaxmodels.layers.target import platform

Heads = Float[Array, "b t h k"]
# What a linear layer multiplies, one or two pairs of rows and kernel, whose products are added up.
Factors = Sequence[tuple[Array, Array]]

# Of a TPU's 128 lanes. Half as wide ones lose less by it than by being written once more.
NARROW = 64


def fused_linear(
    linear: nnx.Linear, x: Float[Array, "b t d"], parts: int
) -> tuple[Float[Array, "b t f"], ...]:
    """`linear(x)` in parts, whose columns lie one part after the other."""
    if platform() != "tpu":
        return tuple(_cut(linear, x, parts))
    return tuple(_added(_flat(cut), bias) for cut, bias in _parts(linear, x, parts))


def heads_of(
    linear: nnx.Linear, x: Float[Array, "b t d"], heads: int, rope: Rope | None = None
) -> Heads:
    """`linear(x)` cut into heads, their pairs turned if there is a rotation."""
    if platform() != "tpu":
        return _turned(rearrange(linear(x), "b t (h k) -> b t h k", h=heads), rope)
    ((part, bias),) = _parts(linear, x, 1)
    return _into_heads(part, bias, heads, rope)


def qkv_heads(
    linear: nnx.Linear, x: Float[Array, "b t d"], heads: int, rope: Rope | None = None
) -> tuple[Heads, Heads, Heads]:
    """Queries, keys and values from one kernel, cut into heads; a rotation turns the first two."""
    if platform() != "tpu":
        cut = rearrange(_cut(linear, x, 3), "n b t (h k) -> n b t h k", h=heads)
        return _turned(cut[0], rope), _turned(cut[1], rope), cut[2]
    q, k, v = _parts(linear, x, 3)
    return (
        _into_heads(*q, heads, rope),
        _into_heads(*k, heads, rope),
        _into_heads(*v, heads, None),
    )


def join_heads(linear: nnx.Linear, x: Heads) -> Float[Array, "b t d"]:
    """`linear` of the results of all heads."""
    if platform() != "tpu":
        return linear(rearrange(x, "b t h k -> b t (h k)"))
    bias = None if linear.bias is None else linear.bias[...]
    rows = _rows(x) if x.shape[-1] < NARROW else None

    def product(kernel: Array) -> Array:
        if rows is not None:
            return rows @ kernel
        return jnp.einsum("bthk,hkd->btd", x, rearrange(kernel, "(h k) d -> h k d", h=x.shape[2]))

    base, *adapter = kernels_of(linear.kernel)
    out = product(base)
    if adapter:
        out = out + product(adapter[0]) @ adapter[1]
    return _added(out, bias)


def _into_heads(part: Factors, bias: Array | None, heads: int, rope: Rope | None) -> Heads:
    if part[0][1].shape[1] < NARROW * heads:
        out = _added(_flat(part), bias)
        if rope is not None:
            out = turned_rows(out, rope, heads)
        return _narrow(out, heads)
    part = [(x, rearrange(kernel, "d (h k) -> d h k", h=heads)) for x, kernel in part]
    bias = None if bias is None else rearrange(bias, "(h k) -> h k", h=heads)

    def product(turn: Callable[[Array], Array]) -> Array:
        out = total(
            jnp.einsum("btd,dhk->bthk", x, constrain(turn(kernel), "data", "model", None))
            for x, kernel in part
        )
        return _added(out, None if bias is None else turn(bias))

    out = product(lambda columns: columns)
    if rope is None:
        return out
    # The other number of each pair comes from a product too: none moves within a tile.
    return turned(out, product(lambda columns: partners(columns, rope)), rope)


def _flat(part: Factors) -> Float[Array, "b t f"]:
    return total(x @ constrain(kernel, "data", "model") for x, kernel in part)


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
    out = total(
        jnp.einsum(
            "btd,dnf->nbtf",
            rows,
            constrain(rearrange(kernel, "d (n f) -> d n f", n=parts), "data", None, "model"),
        )
        for rows, kernel in factors(x, kernels_of(linear.kernel))
    )
    if linear.bias is not None:
        out = out + constrain(
            rearrange(linear.bias[...], "(n f) -> n 1 1 f", n=parts), ..., "model"
        )
    return out


def _parts(linear: nnx.Linear, x: Array, parts: int) -> list[tuple[Factors, Array | None]]:
    """For each part what is multiplied, its kernels [d f] and [r f], and its bias [f]."""
    cut = [
        [(rows, columns) for columns in jnp.split(kernel, parts, axis=1)]
        for rows, kernel in factors(x, kernels_of(linear.kernel))
    ]
    biases: Sequence[Array | None] = [None] * parts
    if linear.bias is not None:
        biases = jnp.split(linear.bias[...], parts)
    return list(zip(zip(*cut, strict=True), biases, strict=True))


def _added(out: Array, bias: Array | None) -> Array:
    return out if bias is None else out + broadcast_param(bias, out.shape)


def _turned(x: Array, rope: Rope | None) -> Array:
    return x if rope is None else rotate(x, rope)
