"""Floating-point operations counted from a program's matrix products, and the rate to hold them to.

XLA's own count takes the body of a loop once, so products are counted in the traced program.
"""

from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from benchmarks.harness import Call, Contestant, cores


class Product(NamedTuple):
    """The sizes of [batch, rows, inner] × [batch, inner, columns], done `times` times."""

    batch: int
    rows: int
    inner: int
    columns: int
    times: int = 1

    @property
    def flops(self) -> int:
        """A multiplication and an addition for each of its terms, each time."""
        return 2 * prod(self)


def products(function: Callable[..., Any], *args: Any) -> list[Product]:
    """The matrix products of a function of these arguments (arrays or their shapes)."""
    return list(_walk(jax.make_jaxpr(function)(*args).jaxpr, 1))


def _walk(jaxpr: Any, times: int) -> Iterator[Product]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield _product(equation, times)
        inside = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        for inner in jaxprs_in_params(equation.params):
            yield from _walk(inner, inside)


def _product(equation: Any, times: int) -> Product:
    left, right = (variable.aval.shape for variable in equation.invars)
    (inner, _), (batch, _) = equation.params["dimension_numbers"]
    shared, contracted = (prod(left[axis] for axis in axes) for axes in (batch, inner))
    rows = prod(left) // (shared * contracted)
    return Product(shared, rows, contracted, prod(right) // (shared * contracted), times)


def matmul(product: Product) -> list[Contestant]:
    """One such product of two matrices (no batch), in float32, in JAX and in PyTorch."""
    return [
        Contestant("matrix product, JAX", partial(_jax_matmul, product)),
        Contestant("matrix product, PyTorch", partial(_torch_matmul, product)),
    ]


def _jax_matmul(product: Product) -> Call:
    left = jnp.ones((product.rows, product.inner), jnp.float32)
    right = jnp.ones((product.inner, product.columns), jnp.float32)
    multiply = jax.jit(jnp.matmul)

    def call(index: int) -> None:
        multiply(left, right).block_until_ready()

    return call


def _torch_matmul(product: Product) -> Call:
    import torch

    torch.set_num_threads(cores())
    left = torch.ones(product.rows, product.inner)
    right = torch.ones(product.inner, product.columns)

    def call(index: int) -> None:
        left @ right

    return call
