"""Values that XLA computes once, however many use them.

The residual stream goes through it where blocks are not in a scan. Else XLA on a CPU computes the
stream's gradient anew, from the last block on, for each product that uses it: a quarter of a step
with 12 blocks.
"""

import jax
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Float

from jaxmodels.layers.target import platform

# Numbers below which a call costs as much as it saves: the rows of a step of decoding.
_FEW = 2**15


def no_recompute(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """x itself, which a CPU computes once, and its gradient too.

    There XLA fuses a sum into everything that uses it. The residual stream's gradient, a sum over
    all later blocks, would be computed again, from the last block on, for every product that it
    enters. XLA does not fuse across a call that must be kept. (It removes an
    `optimization_barrier` before it fuses.)
    """
    return x if x.size < _FEW or platform() != "cpu" else _both_ways(x)


@jax.custom_vjp
def _both_ways(x: Array) -> Array:
    return _settled(x)


_both_ways.defvjp(lambda x: (_settled(x), None), lambda _, g: (_settled(g),))


def _settled(x: Array) -> Array:
    with set_xla_metadata(inlineable="false"):
        return _itself(x)


@jax.jit
def _itself(x: Array) -> Array:
    return jax.lax.optimization_barrier(x)  # else JAX drops a call that does nothing
