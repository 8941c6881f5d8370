"""What a model must remember between tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int


class KVCache(NamedTuple):
    """Keys and values of all layers in a ring of fixed size.

    Position p lives in slot p mod size. Once the ring is full, each new token takes the
    place of the oldest, so every token sees the `size` newest ones, itself included.

    Both are kept with the slots last, the order in which attention reads them fastest. XLA
    would otherwise turn the whole cache around for every token, which takes several times
    longer than attention.
    """

    keys: tuple[Float[Array, "b _ _ s"], ...]
    """One array for each layer."""
    values: tuple[Float[Array, "b _ _ s"], ...]
    """One array for each layer."""
    length: Int[Array, ""]
    """Tokens seen so far; it keeps growing when the ring is full."""

    @classmethod
    def empty(
        cls, heads: tuple[int, ...], dim: int, batch: int, size: int, dtype: jnp.dtype
    ) -> "KVCache":
        """A cache that has seen nothing; `heads` of each layer share its `dim` numbers."""

        def zeros() -> tuple[Array, ...]:  # each its own, so that all can be donated
            return tuple(jnp.zeros((batch, h, dim // h, size), dtype) for h in heads)

        return cls(zeros(), zeros(), jnp.zeros((), jnp.int32))

    @property
    def size(self) -> int:
        """Tokens that it can hold."""
        return self.keys[0].shape[3]

    def grown(self, size: int) -> "KVCache":
        """The same with more slots; the ring must not have wrapped yet: length ≤ old size."""
        more = [(0, 0)] * 3 + [(0, size - self.size)]
        return KVCache(
            tuple(jnp.pad(k, more) for k in self.keys),
            tuple(jnp.pad(v, more) for v in self.values),
            self.length,
        )

    def positions(self, t: int) -> Int[Array, "t"]:
        """Positions of the next t tokens."""
        return self.length + jnp.arange(t)

    def mask(self, t: int) -> Bool[Array, "t s"]:
        """Which slots each of the next t tokens may see, once they are written."""
        query = self.positions(t)
        last = query[-1]
        held = last - (last - jnp.arange(self.size)) % self.size
        return (held >= 0) & (held <= query[:, None])

    def write(
        self, layer: int, k: Float[Array, "b t h k"], v: Float[Array, "b t h k"]
    ) -> tuple[Float[Array, "b h k s"], Float[Array, "b h k s"]]:
        """The layer's keys and values with those of the next t tokens in their slots.

        Several tokens at once must fit without wrapping: t tokens after length ≤ size − t.
        """
        start = (0, 0, 0, self.length % self.size)
        write = jax.lax.dynamic_update_slice
        return (
            write(self.keys[layer], rearrange(k, "b t h k -> b h k t"), start),
            write(self.values[layer], rearrange(v, "b t h k -> b h k t"), start),
        )

    @staticmethod
    def read(
        keys: Float[Array, "b h k s"], values: Float[Array, "b h k s"]
    ) -> tuple[Float[Array, "b s h k"], Float[Array, "b s h k"]]:
        """A layer's keys and values in the order that `attention` takes; moves no data."""
        return rearrange(keys, "b h k s -> b s h k"), rearrange(values, "b h k s -> b s h k")
