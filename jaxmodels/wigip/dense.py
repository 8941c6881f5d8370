"""The dense objective of wigip: every character is predicted from those before it. Ours.

The window is laid out patch by patch: patch k holds the characters k·P² to (k+1)·P² − 1, so the
order of the patches is the order of the text. (In the seed's layout a patch holds pieces of P
lines, so no order of patches is.) The convolution is a sum with one term for each character of its
patch, so a partly filled patch is defined too: after its first j characters it is the sum of j
terms. Each of these P² states attends to itself and to the full patches before it, and the head
predicts the next character from it; from state P², the full patch, that is the first character of
the next patch. This adds no parameters, and the cache holds keys and values of full patches only.

(Predicting a whole patch from one vector would make its characters independent of each other.) A
window costs P² times as much as with `next_char`, but has S² loss terms instead of one: after
120 s of training each, 2.05 bits per character against 2.52 (`benchmarks/objectives.py`).
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from jaxmodels.layers.attention import self_attention
from jaxmodels.layers.blocks import HIDDEN
from jaxmodels.layers.precision import to_float32


def attend(
    q: Float[Array, "b p n h k"], k: Float[Array, "b p n h k"], v: Float[Array, "b p n h k"]
) -> Float[Array, "b p n h k"]:
    """Attention of all p states of n patches; the last state is the full patch.

    This is causal attention over n positions in which the p states are query heads that share a
    head of keys, so it has the kernels of `self_attention`. Position 0 holds a key that stands for
    the state itself; the full patches follow. Softmax does not change when all scores of a query
    are shifted by the same amount: the state's score of itself is subtracted from all, so that this
    key is zero. The subtraction is part of the product: two more columns hold the score in the
    queries (two, since one of 16 bits would round it) and ones in the keys of patches. A column of
    the values gives the weight of the state itself.
    """
    p, width = q.shape[1], q.shape[-1]
    q = q * width**-0.5
    own = (to_float32(q) * to_float32(k)).sum(axis=-1)
    high = _rounded(own, q.dtype)
    low = jax.lax.stop_gradient(own - high)
    high, low = (-x[..., None].astype(q.dtype) for x in (high, low))
    # Multiplied by unit vectors, neither joined nor cut: a TPU would copy arrays one number wide.
    first, second = jnp.eye(width + 2, dtype=q.dtype)[width:]
    queries = _wider(q) + high * first + low * second
    # The state itself comes first; no state sees the last patch as a full one.
    before = [(0, 0), (1, 0), (0, 0), (0, 0)]
    full_k, full_v = (_wider(x[:, -1, :-1]) for x in (k, v))
    keys = jnp.pad(full_k + first + second, before)
    values = jnp.pad(full_v, before).at[:, 0, :, width].set(1)
    queries = rearrange(queries, "b p n h k -> b n (h p) k")
    out = self_attention(queries, keys, values, scale=1.0)
    out = rearrange(out, "b n (h p) k -> b p n h k", p=p)
    weight = (out * first).sum(axis=-1, keepdims=True)
    return out[..., :width] + weight * v


def _wider(x: Float[Array, "*b k"]) -> Float[Array, "*b w"]:
    """Two more columns, of zeros."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 2)])


def _rounded(x: Float[Array, "*s"], dtype: jnp.dtype) -> Float[Array, "*s"]:
    """The numbers as the dtype has them. XLA may leave out a cast there and back."""
    precision = jnp.finfo(dtype)
    return jax.lax.reduce_precision(x, precision.nexp, precision.nmant)


def attend_to(
    q: Float[Array, "b n p h k"],
    k: Float[Array, "b n p h k"],
    v: Float[Array, "b n p h k"],
    keys: Float[Array, "b m h k"],
    values: Float[Array, "b m h k"],
    seen: Bool[Array, "n m"],
) -> Float[Array, "b n p h k"]:
    """Attention of states to themselves (q, k, v) and to those full patches that are `seen`."""
    scale = q.shape[-1] ** -0.5
    scores = jnp.einsum("bnphk,bmhk->bhnpm", q, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(seen[:, None], scores * scale, HIDDEN)
    own = (q.astype(jnp.float32) * k.astype(jnp.float32)).sum(axis=-1) * scale
    own = rearrange(own, "b n p h -> b h n p")
    total = jnp.logaddexp(jax.nn.logsumexp(scores, axis=-1), own)
    weights = jnp.exp(scores - total[..., None]).astype(v.dtype)
    own = rearrange(jnp.exp(own - total), "b h n p -> b n p h 1").astype(v.dtype)
    return jnp.einsum("bhnpm,bmhk->bnphk", weights, values) + own * v
