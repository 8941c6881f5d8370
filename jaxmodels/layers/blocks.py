"""Attention of a long sequence to itself, in blocks of queries, with a backward pass of its own."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from jaxmodels.layers.precision import wide

# The score of a key that a query may not see.
HIDDEN = -1e9
# A block has at most so many queries.
QUERIES = 128
# Blocks are grouped into so many loops; those of one loop meet the same keys.
LOOPS = 4


class Sight(NamedTuple):
    """What decides which keys the queries of a loop see; the first two by blocks."""

    last: Int[Array, "n t"]
    """The last key that a query may see."""
    segments: Int[Array, "n b t"] | None
    """The documents of the queries, if there are any."""
    keys: Int[Array, "b s"] | None
    """Those of the keys."""
    real: Int[Array, "b s"] | None
    """1 for keys that may be seen at all."""


def blocked_attention(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b t h k"],
    v: Float[Array, "b t h k"],
    real: Int[Array, "b t"] | None = None,
    segments: Int[Array, "b t"] | None = None,
    causal: bool = True,
) -> Float[Array, "b t h k"]:
    """Attention of a whole sequence to itself, in blocks of queries when it is long.

    Causal blocks are taken in a few loops, each over the keys up to its end only, which saves
    nearly half of the products. A block's scores are computed again in the backward pass, so
    that memory grows with the length instead of its square (Dao et al. 2022, arXiv:2205.14135).

    Args:
        q: queries.
        k: keys.
        v: values.
        real: 1 for tokens, 0 for padding. No token sees padding; padding attends to all
            positions alike, later ones too (seed 003).
        segments: the document of each token; a query sees keys of its own only.
        causal: a query sees no later key.
    """
    t = q.shape[1]
    blocks = -(-t // QUERIES)
    group = -(-blocks // LOOPS) * QUERIES if causal else t
    out = []
    for at in range(0, t, group):
        end = min(at + group, t)
        last = jnp.arange(at, end) if causal else jnp.full(end - at, t - 1)
        own, seen = (None if x is None else x[:, :end] for x in (segments, real))
        out.append(_loop(q[:, at:end], k[:, :end], v[:, :end], last, own, seen))
    whole = out[0] if len(out) == 1 else jnp.concatenate(out, axis=1)
    if real is None:
        return whole
    return jnp.where(real[:, :, None, None] == 1, whole, v.mean(axis=1, keepdims=True))


def _loop(
    q: Array, k: Array, v: Array, last: Array, segments: Array | None, real: Array | None
) -> Array:
    """Attention of the last queries, [b, t, h, k], to all keys up to the end of them."""
    t, s = q.shape[1], k.shape[1]
    count = -(-t // QUERIES)
    size = -(-t // count)

    def cut(x: Array) -> Array:
        """[b, t, …] → [n, b, t/n, …]"""
        more = [(0, 0), (0, count * size - t)] + [(0, 0)] * (x.ndim - 2)
        return rearrange(jnp.pad(x, more), "b (n t) ... -> n b t ...", n=count)

    own = None if segments is None else cut(segments[:, s - t :])
    sight = Sight(cut(last[None])[:, 0], own, segments, real)
    heads = partial(rearrange, pattern="... t h k -> ... h t k")
    out = _attend(heads(cut(q)), heads(k), heads(v), sight)
    return rearrange(out, "n b h t k -> b (n t) h k")[:, :t]


@jax.custom_vjp
def _attend(
    q: Float[Array, "n b h t k"],
    k: Float[Array, "b h s k"],
    v: Float[Array, "b h s k"],
    sight: Sight,
) -> Float[Array, "n b h t k"]:
    """Softmax attention of blocks of queries at scale 1/sqrt(k).

    Its backward pass is written out for the sake of layouts: what is as large as the scores is
    never turned round, as XLA would for the gradients of keys and values; keys and values are,
    once. Nor are the softmax's sums taken again.
    """
    return _forward(q, k, v, sight)[0]


def _forward(q: Array, k: Array, v: Array, sight: Sight) -> tuple[Array, Any]:
    turned = rearrange(k, "b h s k -> b h k s")

    def block(part: tuple[Array, Array, Array | None]) -> tuple[Array, Array, Array]:
        queries, last, own = part
        scores = _scores(queries, turned, _mask(k.shape[2], last, own, sight))
        top = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        out = _product("bhts,bhsk->bhtk", weights.astype(q.dtype), v) / total
        return out.astype(q.dtype), top, total

    out, top, total = jax.lax.map(block, (q, sight.last, sight.segments))
    return out, (q, k, v, sight, out, top, total)


def _backward(kept: Any, given: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, sight, out, top, total = kept
    keys, values = (rearrange(x, "b h s k -> b h k s") for x in (k, v))

    def block(sums: tuple[Array, Array], part: Any) -> tuple[tuple[Array, Array], Array]:
        queries, given, out, top, total, last, own = part
        mask = _mask(k.shape[2], last, own, sight)
        weights = jnp.exp(_scores(queries, keys, mask) - top) / total
        of_weights = _product("bhtk,bhks->bhts", given, values)
        inner = (given.astype(total.dtype) * out).sum(axis=-1, keepdims=True)
        of_scores = jnp.where(mask, weights * (of_weights - inner), 0) * q.shape[-1] ** -0.5
        of_scores, weights = of_scores.astype(q.dtype), weights.astype(q.dtype)
        sums = (
            sums[0] + _product("bhtk,bhts->bhks", queries, of_scores),
            sums[1] + _product("bhtk,bhts->bhks", given, weights),
        )
        return sums, _product("bhts,bhsk->bhtk", of_scores, k).astype(q.dtype)

    zeros = jnp.zeros(keys.shape, wide(q.dtype))
    parts = (q, given, out, top, total, sight.last, sight.segments)
    sums, of_queries = jax.lax.scan(block, (zeros, zeros), parts)
    of_keys, of_values = (rearrange(x, "b h k s -> b h s k").astype(q.dtype) for x in sums)
    return of_queries, of_keys, of_values, None


_attend.defvjp(_forward, _backward)


def _scores(q: Array, keys: Array, mask: Array) -> Array:
    scores = _product("bhtk,bhks->bhts", q, keys) * q.shape[-1] ** -0.5
    return jnp.where(mask, scores, HIDDEN)


def _mask(s: int, last: Array, own: Array | None, sight: Sight) -> Array:
    """What the queries of a block see of s keys: bool, [b or 1, 1, t, s]."""
    mask = (jnp.arange(s) <= last[:, None])[None]
    if sight.real is not None:
        mask = mask & (sight.real == 1)[:, None]
    if own is not None and sight.keys is not None:
        mask = mask & (own[:, :, None] == sight.keys[:, None])
    return mask[:, None]


def _product(form: str, a: Array, b: Array) -> Array:
    return jnp.einsum(form, a, b, preferred_element_type=wide(a.dtype))
