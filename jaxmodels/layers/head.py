"""The head of a model whose output rows are its embedding's."""

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

# Rows of a product that is bound by reading the table.
FEW = 32


def tied_logits(x: Float[Array, "b t d"], table: Float[Array, "v d"]) -> Float[Array, "b t v"]:
    """float32 logits `x · tableᵀ`.

    The few rows of a step of decoding are turned around first, and their logits after: behind
    barriers, because XLA would else make one product of all three, which is slower on a CPU.
    """
    if x.shape[0] * x.shape[1] > FEW:
        return jnp.einsum("vd,btd->btv", table, x, preferred_element_type=jnp.float32)
    columns = jax.lax.optimization_barrier(rearrange(x, "b t d -> d (b t)"))
    logits = jnp.matmul(table, columns, preferred_element_type=jnp.float32)
    return rearrange(jax.lax.optimization_barrier(logits), "v (b t) -> b t v", b=x.shape[0])
