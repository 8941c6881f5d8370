"""The rate of matrix products, the reference for those of a step."""

from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.harness import Call, Contestant, race
from benchmarks.peers import synchronize, torch_device
from data_pipelines.cores import cores
from jaxmodels.runtime.planning.flops import Product

_WORK = 1e13  # operations of a call on an accelerator, enough to hide the cost of dispatch


def rate(product: Product, rounds: int, dtype: str = "float32", isolated: bool = False) -> float:
    """Operations per second of such a matrix product: the faster of JAX and PyTorch."""
    timings = race(matmul(product, dtype), rounds, isolated=isolated)
    work = product.flops / product.times * _times(product)
    return max(work / min(timing.seconds) for timing in timings)


def matmul(product: Product, dtype: str = "float32") -> list[Contestant]:
    """The product (no batch) in JAX, and in PyTorch if it computes on the same device."""
    found = [Contestant("matrix product, JAX", partial(_jax_matmul, product, dtype))]
    if device := torch_device():
        make = partial(_torch_matmul, product, dtype, device)
        found.append(Contestant("matrix product, PyTorch", make))
    return found


def _times(product: Product) -> int:
    """Products in a call: one on a CPU, on an accelerator enough to hide the cost of dispatch."""
    if jax.default_backend() == "cpu":
        return 1
    return max(1, int(_WORK * product.times / product.flops))


def _jax_matmul(product: Product, dtype: str) -> Call:
    left = jnp.ones((product.rows, product.inner), dtype)
    right = jnp.ones((product.inner, product.columns), dtype)
    multiply, times = jax.jit(jnp.matmul), _times(product)

    def call(index: int) -> None:
        for _ in range(times):
            result = multiply(left, right)
        result.block_until_ready()

    return call


def _torch_matmul(product: Product, dtype: str, device: str) -> Call:
    import torch

    torch.set_num_threads(cores())
    left = torch.ones(product.rows, product.inner, dtype=getattr(torch, dtype), device=device)
    right = torch.ones(product.inner, product.columns, dtype=left.dtype, device=device)
    times = _times(product)

    def call(index: int) -> None:
        for _ in range(times):
            left @ right
        synchronize(device)

    return call
