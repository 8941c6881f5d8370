"""Linear layers and broadcast parameters, with gradients that suit XLA.

JAX's order of the products makes XLA transpose the larger side, and sums along columns are slow on
a CPU: without these rules a step of charlm:notebook takes 1.5 times as long (benchmarks/LOG.md). A
test holds them to flax's gradients.
"""

from collections.abc import Iterable, Sequence
from functools import partial, reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxmodels.layers.low_rank import LowRank, parts
from jaxmodels.layers.precision import accum_dtype
from jaxmodels.layers.products import product_over_rows
from jaxmodels.layers.target import platform


class Linear(nnx.Linear):
    """flax's, with the backward pass of `product` and `broadcast_param`; the kernel may have an
    adapter (`low_rank`)."""

    def __call__(
        self, inputs: Float[Array, "*b i"], out_sharding: Any = None
    ) -> Float[Array, "*b o"]:
        """`inputs · kernel + bias`, in `preferred_element_type` or what both promote to."""
        assert out_sharding is None
        x, *kernels = self.promote_dtype((inputs, *parts(self.kernel)), dtype=self.dtype)
        out = sum_of_products(x, kernels, self.preferred_element_type)
        if self.bias is None:
            return out
        # A nonlinearity follows a layer that widens; its gradient comes from a product.
        inward, outward = kernels[0].shape
        return out + broadcast_param(self.bias[...], out.shape, outward > inward)


class LinearGeneral(nnx.LinearGeneral):
    """flax's, without batch axes, for kernels whose inputs or outputs have several axes; the kernel
    may have an adapter (`low_rank`)."""

    def __call__(self, inputs: Float[Array, "*b"], out_sharding: Any = None) -> Float[Array, "*o"]:
        """`inputs · kernel + bias`, the product over the last axes of the inputs."""
        if not isinstance(self.kernel, LowRank):
            return super().__call__(inputs, out_sharding)
        x, base, a, b = self.promote_dtype((inputs, *parts(self.kernel)), dtype=self.dtype)
        # A kernel of another shape would be kept beside this one for the backward pass of a scan.
        out = jnp.tensordot(
            x, base, len(self.axis), preferred_element_type=self.preferred_element_type
        )
        rows = x.reshape(*x.shape[: -len(self.axis)], -1)
        out = out + product(product(rows, a), b, out.dtype).reshape(out.shape)
        return out if self.bias is None else out + self.bias[...].astype(out.dtype)


def factors(x: Float[Array, "*b i"], kernels: Sequence[Array]) -> list[tuple[Array, Array]]:
    """The products whose sum is `x · kernel`: (x, W), and with an adapter (x A, B).

    Args:
        x: what is multiplied.
        kernels: `low_rank.parts` of the kernel.
    """
    base, *adapter = kernels
    return [(x, base), *([(product(x, adapter[0]), adapter[1])] if adapter else [])]


def sum_of_products(
    x: Float[Array, "*b i"], kernels: Sequence[Array], dtype: Any = None
) -> Float[Array, "*b o"]:
    """`x · kernel` by its `factors`."""
    return total(product(*each, dtype) for each in factors(x, kernels))


def total(terms: Iterable[Array]) -> Array:
    """Their sum; a single one as it is."""
    return reduce(add, terms)


def product(
    x: Float[Array, "*b i"], kernel: Float[Array, "i o"], dtype: Any = None
) -> Float[Array, "*b o"]:
    """`x · kernel` in a dtype, by default that of both.

    On a CPU the kernel's gradient is `xᵀ · g`, or `(gᵀ · x)ᵀ` where g is the smaller. JAX always
    takes the second, for which XLA transposes g: where g is the larger, that takes as long as all
    other products. Other platforms read either order.
    """
    if platform() == "cpu":
        return _on_cpu(x, kernel, dtype)
    return jnp.dot(x, kernel, preferred_element_type=dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _on_cpu(x: Array, kernel: Array, dtype: Any) -> Array:
    dims = ((x.ndim - 1,), (0,)), ((), ())
    out = jax.lax.dot_general(x, kernel, dims, preferred_element_type=accum_dtype(x.dtype))
    return out.astype(dtype or x.dtype)


def _forward(x: Array, kernel: Array, dtype: Any) -> tuple[Array, tuple[Array, Array]]:
    return _on_cpu(x, kernel, dtype), (x, kernel)


def _backward(dtype: Any, kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    types = [each.dtype for each in kept]
    x, kernel = (each.astype(g.dtype) for each in kept)  # of a float32 result also the gradient is
    dims = ((g.ndim - 1,), (1,)), ((), ())
    of_x = jax.lax.dot_general(g, kernel, dims, preferred_element_type=accum_dtype(x.dtype))
    # XLA would turn the transposed result of 16-bit numbers into a product that it cannot compute.
    if x.shape[-1] <= g.shape[-1] or x.dtype.itemsize == 2:
        of_kernel = product_over_rows(x, g)
    else:
        of_kernel = product_over_rows(g, x).T
    return of_x.astype(types[0]), of_kernel.astype(types[1])


_on_cpu.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def broadcast_param(
    parameter: Float[Array, "*d"], shape: tuple[int, ...], fused: bool = False
) -> Float[Array, "*b"]:
    """A parameter broadcast to all rows.

    Its gradient is summed by a product with ones: on a CPU, where XLA takes twenty times as long
    to sum along columns, and on a TPU, whose matrix unit is idle otherwise.

    Args:
        parameter: the parameter.
        shape: of the rows; it ends with the parameter's.
        fused: the gradient comes right out of a product; on a TPU, XLA fuses a plain sum into it.
    """
    return jnp.broadcast_to(parameter, shape)


def _shared(parameter: Array, shape: tuple[int, ...], fused: bool) -> tuple[Array, Array]:
    return broadcast_param(parameter, shape, fused), parameter


def _summed(shape: tuple[int, ...], fused: bool, parameter: Array, g: Array) -> tuple[Array]:
    rows = tuple(range(g.ndim - parameter.ndim))
    if platform() == "cpu":
        flat = g.reshape(-1, *parameter.shape).astype(accum_dtype(g.dtype))
        total = jnp.ones(len(flat), flat.dtype) @ flat
    elif platform() == "tpu" and not fused:
        # As many ones as a tile has rows: of a single one XLA makes a sum again.
        ones = jnp.ones((8, *g.shape[: len(rows)]), g.dtype)
        dims = (tuple(axis + 1 for axis in rows), rows), ((), ())
        exactly = {"precision": "highest", "preferred_element_type": accum_dtype(g.dtype)}
        total = jax.lax.dot_general(ones, g, dims, **exactly)[0]
    else:
        total = jnp.sum(g.astype(accum_dtype(g.dtype)), axis=rows)
    return (total.astype(parameter.dtype),)


broadcast_param.defvjp(_shared, _summed)
