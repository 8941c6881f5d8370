"""The rate of matrix products, which those of a step are held to."""

from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.harness import Call, Contestant, cores
from jaxmodels.runtime.flops import Product


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
