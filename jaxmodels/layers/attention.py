"""Scaled dot-product attention as XLA computes it, and `self_attention`, which has kernels too.

Keys and values may have fewer heads than queries (grouped queries, Ainslie et al. 2023,
arXiv:2305.13245): with h heads of queries and g of keys, query head i reads key head i // (h / g).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxmodels.layers.blocks import HIDDEN, blocked_attention
from jaxmodels.layers.dropout import dropout
from jaxmodels.layers.kernels import fused
from jaxmodels.layers.products import einsum
from jaxmodels.layers.sharding import constrain


def causal_mask(t: int, segments: Int[Array, "b t"] | None = None) -> Bool[Array, "*b t t"]:
    """True where the key is not later than the query, and of its segment where there are any."""
    mask = jnp.tril(jnp.ones((t, t), bool))
    return mask if segments is None else mask & (segments[:, :, None] == segments[:, None])


def attention(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b s g k"],
    v: Float[Array, "b s g k"],
    mask: Bool[Array, "*b t s"],
    rate: float = 0.0,
    key: Key[Array, ""] | None = None,
    scale: float | None = None,
) -> Float[Array, "b t h k"]:
    """Softmax attention; scores and softmax are in float32, or in float64.

    Args:
        q: queries.
        k: keys; g divides h.
        v: values.
        mask: True where a query may see a key; a query that sees none attends to all alike.
        rate: share of the softmax weights that is dropped, when there is a key.
        key: draws what is dropped.
        scale: of the scores; 1/√k by default.
    """
    k, v = (repeat_heads(x, q.shape[2]) for x in (k, v))
    scores = einsum("bthk,bshk->bhts", q, k)
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    allowed = mask if mask.ndim == 2 else mask[:, None]
    weights = jax.nn.softmax(jnp.where(allowed, scores, HIDDEN), axis=-1).astype(q.dtype)
    if key is not None:
        weights = dropout(weights, rate, key)
    return einsum("bhts,bshk->bthk", weights, v).astype(v.dtype)


def self_attention(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b t g k"],
    v: Float[Array, "b t g k"],
    *,
    causal: bool = True,
    segments: Int[Array, "b t"] | None = None,
    padding_mask: Int[Array, "b t"] | None = None,
    rate: float = 0.0,
    key: Key[Array, ""] | None = None,
    scale: float | None = None,
) -> Float[Array, "b t h k"]:
    """Attention of a sequence to itself, by the kernel of the platform (`kernels.fused`).

    Where there is none, and with padding, it is `blocked_attention`; with dropout `attention`.

    Args:
        q: queries.
        k: keys; g divides h.
        v: values.
        causal: a query sees no later key.
        segments: the document of each token; a query sees keys of its own only.
        padding_mask: 1 for tokens, 0 for padding, as in `blocked_attention`; causal only.
        rate: share of the softmax weights that is dropped, when there is a key.
        key: draws what is dropped; all weights are then in memory at once.
        scale: of the scores; 1/√k by default.
    """
    q, k, v = (constrain(x, "data", ..., "model", None) for x in (q, k, v))
    if key is not None and rate > 0:
        out = attention(q, k, v, _mask(q.shape[1], causal, segments), rate, key, scale)
    elif padding_mask is not None:
        out = blocked_attention(q, k, v, padding_mask, segments, causal, scale)
    else:

        def plain(q: Array, k: Array, v: Array, segments: Array | None) -> Array:
            return blocked_attention(q, k, v, None, segments, causal, scale)

        out = fused(q, k, v, segments, causal, plain, scale)
    return constrain(out, "data", ..., "model", None)


def repeat_heads(x: Float[Array, "b s g k"], heads: int) -> Float[Array, "b s h k"]:
    """Keys or values of g heads, each for all of the query heads that read it."""
    groups = x.shape[2]
    return x if groups == heads else jnp.repeat(x, heads // groups, axis=2)


def _mask(t: int, causal: bool, segments: Array | None) -> Array:
    if causal:
        return causal_mask(t, segments)
    every = jnp.ones((t, t), bool)
    return every if segments is None else segments[:, :, None] == segments[:, None]
