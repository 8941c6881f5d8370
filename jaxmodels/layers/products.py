"""Matrix products in the form in which XLA uses a CPU's instructions for bfloat16.

Where a CPU has them (AVX512-BF16), they double the rate of float32. XLA uses them for results in
float32 and a first operand whose contracted axis is the last; other products of bfloat16 it makes
of copies in float32, which is slower than float32 (benchmarks/LOG.md). A contraction of two axes is
one that XLA brings into that form itself.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmodels.layers.precision import accum_dtype
from jaxmodels.layers.target import platform


def on_16bit_cpu(*arrays: Array) -> bool:
    """Whether a product of these is computed on a CPU from 16-bit numbers."""
    return platform() == "cpu" and all(x.dtype.itemsize == 2 for x in arrays)


def product_over_rows(a: Float[Array, "*n i"], b: Float[Array, "*n o"]) -> Float[Array, "i o"]:
    """`aᵀ · b`, summed over all rows, in float32 or float64."""
    if on_16bit_cpu(a, b):
        a, b = (_in_two(x.reshape(-1, x.shape[-1]), 0) for x in (a, b))
    rows = tuple(range(a.ndim - 1))
    return jax.lax.dot_general(
        a, b, ((rows, rows), ((), ())), preferred_element_type=accum_dtype(a.dtype)
    )


def einsum(form: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """`jnp.einsum(form, a, b)` of two arrays of one dtype, in float32 or float64.

    On a CPU gradients of 16-bit numbers are rounded to 16 bits before they are multiplied, as they
    are in attention's kernels. Every axis of an array is in the other or in the result.
    """
    if on_16bit_cpu(a, b):
        return _einsum(form, a, b)
    return jnp.einsum(form, a, b, preferred_element_type=accum_dtype(a.dtype))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _einsum(form: str, a: Array, b: Array) -> Array:
    (one, two), out = form.partition("->")[0].split(","), form.partition("->")[2]
    for letter in sorted(set(one) & set(two) - set(out)):
        if letter != one[-1]:
            a, b = _in_two(a, one.index(letter)), _in_two(b, two.index(letter))
            one, two = (x.replace(letter, letter + letter.upper()) for x in (one, two))
    return jnp.einsum(f"{one},{two}->{out}", a, b, preferred_element_type=jnp.float32)


def _forward(form: str, a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return _einsum(form, a, b), (a, b)


def _backward(form: str, kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    a, b = kept
    (one, two), out = form.partition("->")[0].split(","), form.partition("->")[2]
    g = g.astype(a.dtype)
    of_a, of_b = _einsum(f"{out},{two}->{one}", g, b), _einsum(f"{one},{out}->{two}", a, g)
    return of_a.astype(a.dtype), of_b.astype(b.dtype)


_einsum.defvjp(_forward, _backward)


def _in_two(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """The array with an axis of n cut into two, [2, n/2], or [1, n] where n is odd."""
    size, parts = x.shape[axis], 1 if x.shape[axis] % 2 else 2
    return x.reshape(*x.shape[:axis], parts, size // parts, *x.shape[axis + 1 :])
