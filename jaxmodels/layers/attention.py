"""Scaled dot-product attention as XLA computes it, and `self_attention`, which has kernels too."""

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, Key

from jaxmodels.layers.dropout import dropout
from jaxmodels.layers.kernels import fused
from jaxmodels.layers.precision import wide
from jaxmodels.layers.sharding import spread

# `blocked_attention` takes at most so many queries at a time.
QUERIES = 128
# Its blocks are grouped into so many loops; blocks of one loop meet the same keys.
LOOPS = 4
# The score of a key that a query may not see.
HIDDEN = -1e9


def causal_mask(t: int, segments: Int[Array, "b t"] | None = None) -> Bool[Array, "*b t t"]:
    """True where the key is not later than the query, and of its segment where there are any."""
    mask = jnp.tril(jnp.ones((t, t), bool))
    return mask if segments is None else mask & (segments[:, :, None] == segments[:, None])


def attention(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b s h k"],
    v: Float[Array, "b s h k"],
    mask: Bool[Array, "*b t s"],
    rate: float = 0.0,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "b t h k"]:
    """Softmax attention at scale 1/sqrt(k); scores and softmax are in float32, or in float64.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: True where a query may see a key; a query that sees none attends to all alike.
        rate: share of the softmax weights that is dropped, when there is a key.
        key: draws what is dropped.
    """
    scores = jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=wide(q.dtype))
    scores = scores * q.shape[-1] ** -0.5
    allowed = mask if mask.ndim == 2 else mask[:, None]
    weights = jax.nn.softmax(jnp.where(allowed, scores, HIDDEN), axis=-1).astype(q.dtype)
    if key is not None:
        weights = dropout(weights, rate, key)
    return jnp.einsum("bhts,bshk->bthk", weights, v)


def self_attention(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b t h k"],
    v: Float[Array, "b t h k"],
    *,
    causal: bool = True,
    segments: Int[Array, "b t"] | None = None,
    real: Int[Array, "b t"] | None = None,
    rate: float = 0.0,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "b t h k"]:
    """Attention of a whole sequence to itself, by the kernel of the platform (`kernels.fused`).

    Where there is none, and with padding, it is `blocked_attention`; with dropout `attention`.

    Args:
        q: queries.
        k: keys.
        v: values.
        causal: a query sees no later key.
        segments: the document of each token; a query sees keys of its own only.
        real: 1 for tokens, 0 for padding, as in `blocked_attention`; with causal attention only.
        rate: share of the softmax weights that is dropped, when there is a key.
        key: draws what is dropped; the weights are then whole in memory.
    """
    q, k, v = (spread(x, "data", ..., "model", None) for x in (q, k, v))
    if key is not None and rate > 0:
        out = attention(q, k, v, _mask(q.shape[1], causal, segments), rate, key)
    elif real is not None:
        out = blocked_attention(q, k, v, real, segments, causal)
    else:

        def plain(q: Array, k: Array, v: Array, segments: Array | None) -> Array:
            return blocked_attention(q, k, v, segments=segments, causal=causal)

        out = fused(q, k, v, segments, causal, plain)
    return spread(out, "data", ..., "model", None)


def _mask(t: int, causal: bool, segments: Array | None) -> Array:
    if causal:
        return causal_mask(t, segments)
    whole = jnp.ones((t, t), bool)
    return whole if segments is None else segments[:, :, None] == segments[:, None]


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
    that memory grows with the length instead of its square.

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
    if t <= QUERIES and real is None:
        return attention(q, k, v, _mask(t, causal, segments))
    blocks = -(-t // QUERIES)
    group = -(-blocks // LOOPS) * QUERIES if causal else t
    out = []
    for at in range(0, t, group):
        end = min(at + group, t)
        masks = _until(end, real), _until(end, segments)
        out.append(_loop(q[:, at:end], k[:, :end], v[:, :end], causal, *masks))
    whole = out[0] if len(out) == 1 else jnp.concatenate(out, axis=1)
    if real is None:
        return whole
    return jnp.where(real[:, :, None, None] == 1, whole, v.mean(axis=1, keepdims=True))


def _until(end: int, x: Array | None) -> Array | None:
    return None if x is None else x[:, :end]


def _loop(
    q: Array, k: Array, v: Array, causal: bool, real: Array | None, segments: Array | None
) -> Array:
    """Attention of the last queries, [b, t, h, k], to all keys up to the end of them."""
    t, s = q.shape[1], k.shape[1]

    def block(part: tuple[Array, Array, Array | None]) -> Array:
        queries, positions, own = part
        mask = (jnp.arange(s) <= positions[:, None]) | (not causal)
        if real is not None:
            mask = mask & (real == 1)[:, None]
        if own is not None and segments is not None:
            mask = mask & (own[:, :, None] == segments[:, None])
        return attention(queries, k, v, mask)

    positions, own = jnp.arange(s - t, s), None if segments is None else segments[:, s - t :]
    if t <= QUERIES:
        return (block if s <= QUERIES else jax.checkpoint(block))((q, positions, own))
    count = -(-t // QUERIES)
    size = -(-t // count)

    def cut(x: Array) -> Array:
        """[b, t, …] → [n, b, t/n, …]"""
        more = [(0, 0), (0, count * size - t)] + [(0, 0)] * (x.ndim - 2)
        return rearrange(jnp.pad(x, more), "b (n t) ... -> n b t ...", n=count)

    parts = cut(q), cut(positions[None])[:, 0], None if own is None else cut(own)
    out = jax.lax.map(jax.checkpoint(block), parts)
    return rearrange(out, "n b t h k -> b (n t) h k")[:, :t]
