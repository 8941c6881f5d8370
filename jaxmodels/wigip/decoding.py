"""The caches of wigip, and decoding with them.

With `next_char`, a prompt shorter than the window is padded at the front with id 0, the seed's id
for unknown characters. (Repeating the prompt to fill the window makes the model repeat it again.)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from jaxmodels.layers.attention import self_attention
from jaxmodels.layers.norm import dtype_behind, layer_norm
from jaxmodels.wigip.dense import attend_to


class Window(NamedTuple):
    """The cache of `next_char`: the last characters, as many as the grid holds."""

    ids: Int[Array, "b s"]

    def grown(self, size: int) -> "Window":
        """Itself: a window has a fixed size."""
        return self


class PatchCache(NamedTuple):
    """The characters so far, and the keys and values of their patches."""

    keys: Float[Array, "l b n h k"]
    """Of full patches; entries of a patch that is still being filled are not read."""
    values: Float[Array, "l b n h k"]
    ids: Int[Array, "b s"]
    """The characters, n patches of them."""
    length: Int[Array, ""]
    """How many of them are filled."""

    def grown(self, size: int) -> "PatchCache":
        """The same with room for `size` characters."""
        area = self.ids.shape[1] // self.keys.shape[2]
        slots = -(-size // area)
        more = slots - self.keys.shape[2]
        pad = [(0, 0), (0, 0), (0, more), (0, 0), (0, 0)]
        ids = jnp.pad(self.ids, ((0, 0), (0, more * area)))
        return PatchCache(jnp.pad(self.keys, pad), jnp.pad(self.values, pad), ids, self.length)


Cache = Window | PatchCache


def empty(model: Any, batch: int, size: int) -> Cache:
    """The cache of `Model.init_cache`."""
    cfg = model.config
    if cfg.objective == "next_char":
        return Window(jnp.zeros((batch, cfg.context), jnp.int32))
    n = -(-min(size, cfg.context) // cfg.area)
    shape = (cfg.layers, batch, n, cfg.heads, cfg.dim // cfg.heads)
    dtype = dtype_behind(model.norm, model.embed.embedding[...])
    keys, values = (jnp.zeros(shape, dtype) for _ in range(2))
    ids = jnp.zeros((batch, n * cfg.area), jnp.int32)
    return PatchCache(keys, values, ids, jnp.zeros((), jnp.int32))


def prefill(
    model: Any, tokens: Int[Array, "b t"], length: Int[Array, ""], cache: Cache
) -> tuple[Float[Array, "b v"], Cache]:
    """Logits after the first `length` tokens, and the empty cache filled with them.

    All patches are read at once, as if full; only the last token is read again, in its
    patch's true state.
    """
    if isinstance(cache, Window):
        ids = jnp.concatenate([cache.ids, tokens], axis=1)
        ids = jax.lax.dynamic_slice_in_dim(ids, length, model.config.context, axis=1)
        return model.logits(model.hidden(ids)), Window(ids)
    ids = jnp.pad(tokens, ((0, 0), (0, cache.ids.shape[1] - tokens.shape[1])))
    patches = rearrange(ids, "b (n p) -> b n p", p=model.config.area)
    x = model.placed(model.convolved(model.embedded(patches)), jnp.arange(patches.shape[1]))
    _, (keys, values) = model.through(
        x, lambda q, k, v: (self_attention(q, k, v), (k, v)), keep=True
    )
    before = PatchCache(keys, values, ids, jnp.zeros((), jnp.int32) + length - 1)
    token = jax.lax.dynamic_index_in_dim(ids, length - 1, axis=1, keepdims=False)
    return step(model, before, token)[::-1]


def step(model: Any, cache: Cache, token: Int[Array, "b"]) -> tuple[Cache, Float[Array, "b v"]]:
    """The cache with one more character, and the logits of the next."""
    if isinstance(cache, Window):
        ids = jnp.concatenate([cache.ids[:, 1:], token[:, None]], axis=1)
        return Window(ids), model.logits(model.hidden(ids))
    area = model.config.area
    at, filled = cache.length // area, cache.length % area
    ids = jax.lax.dynamic_update_slice(cache.ids, token[:, None], (0, cache.length))
    patch = jax.lax.dynamic_slice_in_dim(ids, at * area, area, axis=1)
    there = (jnp.arange(area) <= filled)[:, None]
    own = jnp.where(there, model.terms(model.embedded(patch[:, None])), 0).sum(axis=2)
    x = model.placed(own, at[None])[:, :, None]
    seen = jnp.arange(cache.keys.shape[2])[None] < at

    def look(before: Any, q: Array, k: Array, v: Array) -> tuple[Array, Any]:
        keys, values = before
        return attend_to(q, k, v, keys, values, seen), (k[:, :, 0], v[:, :, 0])

    x, new = model.through(x, look, (cache.keys, cache.values), keep=True)
    keys, values = (
        jax.lax.dynamic_update_slice(old, part.astype(old.dtype), (0, 0, at, 0, 0))
        for old, part in zip((cache.keys, cache.values), new, strict=True)
    )
    logits = model.logits(layer_norm(model.norm, x[:, 0])[:, 0])
    return PatchCache(keys, values, ids, cache.length + 1), logits
