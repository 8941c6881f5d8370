"""Random keys for a model that is made or trained."""

import jax
from flax import nnx


class _Stream(nnx.RngStream):
    def __call__(self) -> jax.Array:
        key = jax.random.fold_in(self.key[...], self.count[...])
        self.count.set_value(self.count[...] + 1)
        return key


def keys(**streams: int | jax.Array) -> nnx.Rngs:
    """What `nnx.Rngs(**streams)` is and gives, in less time while a program is traced.

    Flax raises a counter with `count[...] += 1`, for which it asks the traced number for its
    sharding, and JAX, before it says that there is none, goes through all that was traced so far:
    the time grows with the square of the number of draws. Here the counter is replaced.

    Args:
        streams: name → seed, or key; `default` is for all names that are not given.
    """
    rngs = nnx.Rngs()
    for name, key in streams.items():
        setattr(rngs, name, _Stream(key, tag=name))
    return rngs
