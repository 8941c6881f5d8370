"""What a model remembers between tokens.

Slots come last (`b h k s`), in the order in which attention multiplies: XLA transposed the cache
for every token before (680 → 416 µs a token at batch 8). The token being decoded is attended to
beside the cache and written after the cache was read: with two readers of one write, XLA copied the
whole cache twice per layer and token. A cache of the context's size is a ring where positions are
relative: the newest token replaces the oldest.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from jaxmodels.layers.attention import attention
from jaxmodels.layers.blocks import HIDDEN
from jaxmodels.layers.precision import accum_dtype

KeysValues = tuple[Float[Array, "b g k slots"], Float[Array, "b g k slots"]]
"""What a layer remembers."""


class KVCache(NamedTuple):
    """Keys and values of all layers in a ring of fixed size.

    Position p lives in slot p mod size. Once the ring is full, each new token takes the
    place of the oldest, so every token sees the `size` newest ones, itself included.

    Both are stored with the slots last, the order in which attention reads them fastest. XLA
    would otherwise transpose all of the cache for every token, which takes several times longer
    than attention.
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
        """A cache that has seen nothing; the key heads of each layer share its `dim` numbers.

        A model whose weights have 16 bits and whose norms stay float32 computes keys in float32.
        """

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

    def attend(
        self,
        layer: int,
        q: Float[Array, "b t h k"],
        k: Float[Array, "b t g k"],
        v: Float[Array, "b t g k"],
    ) -> tuple[Float[Array, "b t h k"], KeysValues]:
        """Attention of the next t tokens to what a layer remembers and to themselves.

        Keys and values may have fewer heads than queries, as in `self_attention`.

        Returns:
            the result, and the layer's keys and values with the new ones in their slots.
        """
        if q.shape[1] == 1:
            if q.shape[2] == k.shape[2]:
                return self._attend_one(layer, q, k, v)
            # Queries that share a key head become positions: they see the same.
            grouped = rearrange(q, "b 1 (g r) k -> b r g k", g=k.shape[2])
            out, kept = self._attend_one(layer, grouped, k, v)
            return rearrange(out, "b r g k -> b 1 (g r) k"), kept
        kept = self.write(layer, k, v)
        keys, values = (rearrange(x, "b h k s -> b s h k") for x in kept)
        return attention(q, keys, values, self.mask(q.shape[1])), kept

    def _attend_one(self, layer: int, q: Array, k: Array, v: Array) -> Any:
        """The same for one token, which is read beside the cache, not in it.

        Queries [b, r, g, k] are those of the r heads that share each of g keys [b, 1, g, k].

        Written first and read back, the new token would have two readers, attention and the
        next step, and XLA would copy the whole cache for each.
        """
        keys, values = self.keys[layer], self.values[layer]
        product = partial(jnp.einsum, preferred_element_type=accum_dtype(q.dtype))
        # The slot that this token will take is not read: what it holds is too old by then.
        slots = jnp.arange(self.size)
        seen = (slots < self.length) & (slots != self.length % self.size)
        scale = q.shape[-1] ** -0.5
        before = jnp.where(seen, scale * product("bthk,bhks->bhts", q, keys), HIDDEN)
        own = scale * product("bthk,bthk->bht", q, jnp.broadcast_to(k, q.shape))
        top = jnp.maximum(before.max(axis=-1), own)
        weights, its = jnp.exp(before - top[..., None]), jnp.exp(own - top)
        total = weights.sum(axis=-1) + its
        out = product("bhts,bhks->bthk", weights.astype(q.dtype), values)
        out = out + rearrange(its, "b h t -> b t h 1") * v
        out = (out / rearrange(total, "b h t -> b t h 1")).astype(q.dtype)
        # What is written does not depend on what was read. Making it seem so forces XLA to write
        # after reading, in place; otherwise it copies the cache.
        after = 0 * out[:1, :1, :1, :1]
        return out, self.write(layer, k + after, v + after)

    def write(
        self, layer: int, k: Float[Array, "b t g k"], v: Float[Array, "b t g k"]
    ) -> KeysValues:
        """The layer's keys and values with those of the next t tokens in their slots.

        Several tokens at once must fit without wrapping: t tokens after length ≤ size − t.
        """
        first = jnp.zeros_like(self.length)  # all of one type, in 64 bits too
        start = (first, first, first, self.length % self.size)

        def put(kept: Array, new: Array) -> Array:
            new = rearrange(new, "b t h k -> b h k t").astype(kept.dtype)
            return jax.lax.dynamic_update_slice(kept, new, start)

        return put(self.keys[layer], k), put(self.values[layer], v)
