"""Random keys for a model that is made or trained.

Queues, slow copies and counters are replaced with `set_value`: flax's `count[...] += 1` makes JAX
go through everything traced so far, a quarter of the start of bitgen:tiny.
"""

import jax
from flax import nnx


class _Stream(nnx.RngStream):
    def __call__(self) -> jax.Array:
        key = jax.random.fold_in(self.key[...], self.count[...])
        self.count.set_value(self.count[...] + 1)
        return key


def keys(**streams: int | jax.Array) -> nnx.Rngs:
    """`nnx.Rngs(**streams)`, faster to trace.

    Flax counts draws with `count[...] += 1`, which asks the traced number for its sharding; to
    answer, JAX walks through all that was traced so far, so the time grows with the square of the
    number of draws. Here the counter is replaced instead.

    Args:
        streams: name → seed or key; `default` serves all other names.
    """
    rngs = nnx.Rngs()
    for name, key in streams.items():
        setattr(rngs, name, _Stream(key, tag=name))
    return rngs
