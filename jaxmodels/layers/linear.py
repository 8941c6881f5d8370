"""Linear layers, and parameters that all rows share, with gradients that suit XLA on a CPU."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxmodels.layers.precision import wide


class Linear(nnx.Linear):
    """flax's, with the backward pass of `product` and `for_rows`."""

    def __call__(self, inputs: Float[Array, "*b i"], out_sharding: Any = None) -> Array:
        """`inputs · kernel + bias` [… o], in `preferred_element_type` or what both promote to."""
        assert out_sharding is None
        x, kernel = self.promote_dtype((inputs, self.kernel[...]), dtype=self.dtype)
        out = product(x, kernel, self.preferred_element_type)
        return out if self.bias is None else out + for_rows(self.bias[...], out.shape)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(
    x: Float[Array, "*b i"], kernel: Float[Array, "i o"], dtype: Any = None
) -> Float[Array, "*b o"]:
    """`x · kernel` in a dtype, by default that of both.

    The kernel's gradient is `xᵀ · g`, or `(gᵀ · x)ᵀ` where g is the smaller. JAX always takes the
    second, for which XLA turns g round: where it is the larger, in the time of all other products.
    """
    dims = ((x.ndim - 1,), (0,)), ((), ())
    return jax.lax.dot_general(x, kernel, dims, preferred_element_type=dtype)


def _forward(x: Array, kernel: Array, dtype: Any) -> tuple[Array, tuple[Array, Array]]:
    return product(x, kernel, dtype), (x, kernel)


def _backward(dtype: Any, kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = kept
    rows = tuple(range(x.ndim - 1))
    dot = partial(jax.lax.dot_general, preferred_element_type=dtype)
    of_x = dot(g, kernel, (((g.ndim - 1,), (1,)), ((), ())))
    if x.shape[-1] <= g.shape[-1]:
        of_kernel = dot(x, g, ((rows, rows), ((), ())))
    else:
        of_kernel = dot(g, x, ((rows, rows), ((), ()))).T
    return of_x.astype(x.dtype), of_kernel.astype(kernel.dtype)


product.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def for_rows(parameter: Float[Array, "d"], shape: tuple[int, ...]) -> Float[Array, "*b d"]:
    """A parameter that all rows share, for each of them.

    Its gradient is summed up as a product with ones on a CPU, where XLA takes twenty times as long
    for sums along columns.
    """
    return jnp.broadcast_to(parameter, shape)


def _shared(parameter: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    return for_rows(parameter, shape), parameter


def _summed(shape: tuple[int, ...], parameter: Array, g: Array) -> tuple[Array]:
    rows = g.reshape(-1, g.shape[-1]).astype(wide(g.dtype))
    total = jax.lax.platform_dependent(rows, cpu=_by_product, default=partial(jnp.sum, axis=0))
    return (total.astype(parameter.dtype),)


def _by_product(rows: Array) -> Array:
    return jnp.ones(len(rows), rows.dtype) @ rows


for_rows.defvjp(_shared, _summed)
