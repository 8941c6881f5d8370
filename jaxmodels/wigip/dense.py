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

from jaxmodels.layers.blocks import HIDDEN
from jaxmodels.layers.sharding import constrain

# States that `attend` takes at a time.
QUERIES = 1024


def attend(
    q: Float[Array, "b n p h k"], k: Float[Array, "b n p h k"], v: Float[Array, "b n p h k"]
) -> Float[Array, "b n p h k"]:
    """Attention of all p states of n patches; the last state is the full patch.

    Scores are recomputed in the backward pass, so memory grows linearly with the length.
    """
    q, k, v = (constrain(x, "data", ..., "model", None) for x in (q, k, v))
    keys, values = k[:, :, -1], v[:, :, -1]
    n, p = q.shape[1:3]
    seen = jnp.arange(n)[:, None] > jnp.arange(n)
    if n * p <= QUERIES:
        return attend_to(q, k, v, keys, values, seen)
    size = max(QUERIES // p, 1)
    count = -(-n // size)

    def cut(x: Array, axis: int) -> Array:
        more = [(0, count * size - n if i == axis else 0) for i in range(x.ndim)]
        cut = jnp.pad(x, more).reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])
        return jnp.moveaxis(cut, axis, 0)

    @jax.checkpoint
    def block(part: tuple[Array, ...]) -> Array:
        own_q, own_k, own_v, seen = part
        return attend_to(own_q, own_k, own_v, keys, values, seen)

    out = jax.lax.map(block, (cut(q, 1), cut(k, 1), cut(v, 1), cut(seen, 0)))
    return rearrange(out, "c b n p h k -> b (c n) p h k")[:, :n]


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
