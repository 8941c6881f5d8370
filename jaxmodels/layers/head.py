"""The head of a model whose output rows are its embedding's.

A few rows are sums along the table's rows on a CPU: XLA's product packs the whole table first
(benchmarks/LOG.md).
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

# With at most so many rows, reading the table takes most of the time.
FEW = 32


def tied_logits(x: Float[Array, "b t d"], table: Float[Array, "v d"]) -> Float[Array, "b t v"]:
    """float32 logits `x · tableᵀ`.

    The few rows of a decoding step are transposed first, behind a barrier: XLA would otherwise
    merge both into one product, which is slower on a CPU.
    """
    rows = x.shape[0] * x.shape[1]
    if rows > FEW:
        return jnp.einsum("vd,btd->btv", table, x, preferred_element_type=jnp.float32)
    few = jax.lax.optimization_barrier(rearrange(x, "b t d -> (b t) d"))
    if rows == 1:
        logits = _product(table, few)
    else:
        logits = jax.lax.platform_dependent(table, few, cpu=_sums, default=_product)
    return rearrange(logits, "v (b t) -> b t v", b=x.shape[0])


def _product(table: Array, x: Array) -> Array:
    return jnp.einsum("vd,nd->vn", table, x, preferred_element_type=jnp.float32)


def _sums(table: Array, x: Array) -> Array:
    """The same as sums along rows, for which XLA reads the table at the memory's rate on a CPU.

    Its matrix product copies the table into blocks first, which a few columns do not pay for.
    """
    return jnp.sum(table[:, None].astype(jnp.float32) * x.astype(jnp.float32), axis=-1)
